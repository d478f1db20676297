"""An account: one upstream endpoint with one credential, and the models known for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from qwen_wsgi.credentials.credential import CredentialSource
from qwen_wsgi.hosts import Family, family_of, named_family


@dataclass(frozen=True)
class ProviderModel:
    """A model that a settings file lists.

    Attributes:
        name: the display name.
        context_length: tokens.
        modalities: inputs besides text (`image`, `video`, …); None when the file says
            nothing.
        chat: false for models that only make images or handle speech.
        wire_api: `chat-completions`, or `responses` where qwen-code's settings say so.
    """

    id: str
    name: str | None = None
    description: str | None = None
    context_length: int | None = None
    modalities: tuple[str, ...] | None = None
    chat: bool = True
    wire_api: str = "chat-completions"


@dataclass(frozen=True)
class Account:
    """One upstream endpoint with one credential.

    Attributes:
        name: short, unique, of `[a-z0-9-]`.
        base_url: None while unknown: for a login whose document names no usable endpoint, and for
            the sandbox before its first call.
        origin: where it was found, in words.
        explicit: it comes from QWEN_UPSTREAM_BASE_URL. What is sent to it depends on its family, as
            for every other account.
        family: the kind of host.
        models: the models that qwen-code's settings list for it; empty when they list none.
        batch_wait_s: it is Batch Chat (`upstream.routing.batch_chat`), and a call may wait there
            for so long; None for all that are found.
    """

    name: str
    kind: Literal["key", "oauth", "web", "sandbox"]
    base_url: str | None
    origin: str
    explicit: bool
    family: Family
    credential: CredentialSource
    models: tuple[ProviderModel, ...] = ()
    batch_wait_s: float | None = None


#: Names of providers whose keys belong to Model Studio, pay as you go.
_PAY_AS_YOU_GO: Final = frozenset(
    {"dashscope", "modelstudio", "qwencloud", "qianwen", "qwen-ai-platform", "qwen"}
)
#: Endings of the names of providers whose keys belong to a plan.
_PLANS: Final = {
    "coding-plan": Family.CODING_PLAN,
    "token-plan": Family.TOKEN_PLAN,
    "token-plan-cn": Family.TOKEN_PLAN,
}


def family_for(
    name: str,
    kind: str,
    base_url: str | None,
    *,
    explicit: bool,
    named: Mapping[str, Family] = MappingProxyType({}),
) -> Family:
    """The kind of host of an account: by its URL, else by the account's name.

    A key with the name of a provider belongs to a host of its plan, even behind a private gateway.

    Args:
        named: what the operator says of hosts, see `hosts.named_family`; it comes first.
    """
    if base_url and (family := named_family(base_url, named)) is not None:
        return family
    by_host = family_of(base_url) if base_url else Family.OTHER
    if by_host is not Family.OTHER or explicit:
        return by_host
    if kind == "oauth":
        return Family.PORTAL
    if name in _PAY_AS_YOU_GO:
        return Family.DASHSCOPE
    # Names from settings files are those of hosts, not of keys.
    ends = () if name.startswith("settings-") else _PLANS.items()
    return next((plan for end, plan in ends if f"-{name}".endswith(f"-{end}")), Family.OTHER)
