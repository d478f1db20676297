"""Classifies the host of a base URL by its name, because the hosts do not say what they are."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final
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
    #: The web API of chat.qwen.ai, for a user's own login there.
    WEB = "web"
    #: Any other OpenAI-compatible server.
    OTHER = "other"

    def __init__(self, name: str) -> None:
        #: Whether it is Alibaba's own gateway; those have limits and are always sent `stream`.
        #: An attribute: a property is a call, and each request asks.
        self.is_qwen = name != "other"


#: Domains of Alibaba's gateways; below them are hosts of regions, workspaces, batches, trials and
#: plans. The last two are Qwen Cloud and its Chinese twin, since September 2026.
_DOMAINS: Final = (
    "dashscope.aliyuncs.com",
    "dashscope-intl.aliyuncs.com",
    "dashscope-us.aliyuncs.com",
    "maas.aliyuncs.com",
    "maas.qwencloudapi.com",
    "maas.qianwenaiapi.com",
)
#: Below these every host is a gateway, but they are none themselves.
_INTERNAL: Final = (".alibaba-inc.com", ".aliyun-inc.com")

#: The first label of a plan's host; the others of these domains are pay as you go.
_PLAN_LABELS: Final = {
    "coding": Family.CODING_PLAN,
    "coding-intl": Family.CODING_PLAN,
    "token-plan": Family.TOKEN_PLAN,
}

#: Paths under which the same hosts speak other protocols than OpenAI's, e.g. in the settings of the
#: `dashscope` package, which share a variable's name with ours.
_OTHER_PATHS: Final = frozenset({"", "/api/v1", "/apps/anthropic", "/compatible-mode"})


def family_of(base_url: str) -> Family:
    """The family of a base URL's host (Model Studio's "Base URL overview", 2026-10)."""
    host = (urlsplit(base_url).hostname or "").lower()
    if host == "portal.qwen.ai":
        return Family.PORTAL
    if host.endswith(_INTERNAL):
        return Family.DASHSCOPE
    if any(host == domain or host.endswith("." + domain) for domain in _DOMAINS):
        return _PLAN_LABELS.get(host.partition(".")[0], Family.DASHSCOPE)
    return Family.OTHER


def named_family(base_url: str, named: Mapping[str, Family]) -> Family | None:
    """The family that the operator names for a base URL's host (QWEN_PROXY_HOST_FAMILIES), if any.

    Args:
        named: by host; `*.example.com` is every host below example.com. The closest one counts.
    """
    host = (urlsplit(base_url).hostname or "").lower()
    if host in named:
        return named[host]
    while "." in host:
        host = host.partition(".")[2]
        if (found := named.get("*." + host)) is not None:
            return found
    return None


def openai_base_url(base_url: str) -> str:
    """The base URL for OpenAI's protocol at a gateway of Alibaba, given one of another protocol.

    Other URLs are returned as they are: what the operator wrote is believed.
    """
    try:
        parts = urlsplit(base_url)
        family = family_of(base_url)
    except ValueError:  # whoever uses it says what is wrong with it
        return base_url
    if parts.path.rstrip("/") not in _OTHER_PATHS:
        return base_url
    if family in (Family.DASHSCOPE, Family.TOKEN_PLAN) and not (parts.hostname or "").endswith(
        _INTERNAL
    ):
        return f"{parts.scheme}://{parts.netloc}/compatible-mode/v1"
    if family is Family.CODING_PLAN:
        return f"{parts.scheme}://{parts.netloc}/v1"
    return base_url


def has_native_api(family: Family) -> bool:
    """Whether hosts of a family may have all of Model Studio's native API: those of plans and the
    portal have a few routes of it, or none."""
    return family in (Family.DASHSCOPE, Family.SANDBOX)


#: Batch Chat takes the keys of this host alone (Model Studio's "Batch Chat", 2026-05).
_BATCH_CHAT_OF: Final = "dashscope.aliyuncs.com"
_BATCH_CHAT: Final = "https://batch.dashscope.aliyuncs.com/compatible-mode/v1"


def batch_chat_url(base_url: str) -> str:
    """The base URL of Batch Chat for the keys of a host; "" where there is none."""
    return _BATCH_CHAT if urlsplit(base_url).hostname == _BATCH_CHAT_OF else ""


def has_files(family: Family) -> bool:
    """Whether hosts of a family have OpenAI's files and batches: those of plans have none."""
    return family in (Family.DASHSCOPE, Family.SANDBOX)


def origin_of(base_url: str) -> str:
    """Scheme and host of a base URL, behind which a host's native API is."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc}"
