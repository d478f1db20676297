"""What a client's model name asks for: aliases, a pinned account, a vendor's prefix, suffixes.

Pure. A name is read in several ways, the most literal first, and the router takes the first that
some account serves; so a model that is really called `some-model-thinking` is found as such.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

#: Suffixes that switch something on, as Open WebUI users know them.
_SUFFIXES: Final = ("-search", "-thinking")

#: Begins ids for Claude Code, which shows only those of a gateway's models that have `claude` or
#: `anthropic` in them (2.1.332).
ANTHROPIC: Final = "anthropic/"

#: Models that Qwen's OAuth portal once served by these names. Today it has one, whatever is asked.
PORTAL_MODEL: Final = "coder-model"
_PORTAL_NAMES: Final = frozenset(
    {
        "qwen3-coder-plus",
        "qwen3-coder-flash",
        "qwen3.5-plus",
        "qwen3.6-plus",
        "qwen3.7-max",
        "vision-model",
    }
)


@dataclass(frozen=True)
class ModelRef:
    """One way to read a model name.

    Attributes:
        model: the upstream's name.
        account: the only account that may answer; None for any.
        search: the model is to search the web.
        thinking: the model is to think; None leaves it as it is.
    """

    model: str
    account: str | None = None
    search: bool = False
    thinking: bool | None = None


def interpretations(
    name: str, *, aliases: Mapping[str, str], accounts: Collection[str]
) -> Iterator[ModelRef]:
    """The ways to read `name`, the one that changes least first.

    Args:
        aliases: names, or beginnings of names followed by `*`, and what they stand for.
        accounts: the names of the accounts: `dashscope:qwen3.7-plus` pins one of them.
    """
    seen = set()
    for read in _without_namespace(name, aliases):
        aliased = alias_of(read, aliases)
        for wish in _pinned(read if aliased is None else aliased, accounts):
            for each in _suffixed(wish):
                if each not in seen:
                    seen.add(each)
                    yield each


def _without_namespace(name: str, aliases: Mapping[str, str]) -> Iterator[str]:
    """The name, and what is in Anthropic's namespace: it may be an alias or pin an account, too.

    An alias of the whole name is the operator's decision.
    """
    yield name
    model = name.removeprefix(ANTHROPIC)
    if model and model != name and alias_of(name, aliases) is None:
        yield model


def alias_of(name: str, aliases: Mapping[str, str]) -> str | None:
    """What a name stands for; an exact alias before one with `*`, of these the longest."""
    if (found := aliases.get(name)) is not None:
        return found
    best = max(
        (alias for alias in aliases if alias.endswith("*") and name.startswith(alias[:-1])),
        key=len,
        default=None,
    )
    return None if best is None else aliases[best]


def _pinned(name: str, accounts: Collection[str]) -> Iterator[ModelRef]:
    yield ModelRef(name)
    before, colon, after = name.partition(":")
    if colon and after and before in accounts:
        yield ModelRef(after, account=before)
        name = after
    provider, slash, model = name.partition("/")
    if slash and model:
        if provider in accounts:
            yield ModelRef(model, account=provider)
        # `openai/qwen3.7-plus` and the like: LiteLLM's and OpenRouter's clients name a provider.
        yield ModelRef(model, account=before if colon and before in accounts else None)


def _suffixed(wish: ModelRef) -> Iterator[ModelRef]:
    yield wish
    # In either order, each once: `-search-thinking` is as good as `-thinking-search`.
    for _ in _SUFFIXES:
        suffix = next((each for each in _SUFFIXES if wish.model.endswith(each)), None)
        if suffix is None or len(wish.model) == len(suffix):
            return
        model = wish.model.removesuffix(suffix)
        wish = (
            replace(wish, model=model, search=True)
            if suffix == "-search"
            else replace(wish, model=model, thinking=True)
        )
        yield wish


def at_portal(model: str) -> str | None:
    """The OAuth portal's name for a model that it once had, or None."""
    return PORTAL_MODEL if model in _PORTAL_NAMES else None
