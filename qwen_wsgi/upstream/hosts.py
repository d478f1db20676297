"""What kind of host a base URL leads to: by name, because the hosts do not say it themselves."""

from __future__ import annotations

import enum
import ipaddress
from urllib.parse import urlsplit


class Family(enum.Enum):
    """Hosts that behave alike."""

    #: Model Studio pay as you go, any region, also workspace hosts.
    DASHSCOPE = "dashscope"
    CODING_PLAN = "coding-plan"
    TOKEN_PLAN = "token-plan"
    #: The OAuth portal.
    PORTAL = "portal"
    #: Our own fake of Model Studio.
    SANDBOX = "sandbox"
    #: Any other OpenAI-compatible server.
    OTHER = "other"

    @property
    def is_qwen(self) -> bool:
        """Alibaba's own gateways, with their limits: they are always asked for a stream."""
        return self is not Family.OTHER


def family(base_url: str) -> Family:
    """The family of a base URL's host (Model Studio's "Base URL overview", 2026-10)."""
    host = (urlsplit(base_url).hostname or "").lower()
    if host.startswith(("coding.", "coding-intl.")) and host.endswith(".aliyuncs.com"):
        return Family.CODING_PLAN
    if host.startswith("token-plan.") and host.endswith(".maas.aliyuncs.com"):
        return Family.TOKEN_PLAN
    if host == "portal.qwen.ai":
        return Family.PORTAL
    if host.endswith((".maas.aliyuncs.com", ".alibaba-inc.com", ".aliyun-inc.com")) or any(
        host == name or host.endswith("." + name)
        for name in (
            "dashscope.aliyuncs.com",
            "dashscope-intl.aliyuncs.com",
            "dashscope-us.aliyuncs.com",
        )
    ):
        return Family.DASHSCOPE
    return Family.OTHER


def is_loopback(host: str) -> bool:
    """Whether a host, name or address, is this machine."""
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
