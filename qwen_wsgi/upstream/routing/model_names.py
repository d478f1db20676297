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


#: Names of earlier years, which programs and their documentation still have, and today's models in
#: their place, the nearest first. As of 2026-11-28; a host that still lists a name serves it.
OLD_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "qwen-max": ("qwen3.8-max", "qwen3.7-max", "qwen3-max"),
    "qwen-max-latest": ("qwen3.8-max", "qwen3.7-max", "qwen3-max"),
    "qwen-plus": ("qwen3.7-plus", "qwen3.6-plus", "qwen3.5-plus"),
    "qwen-plus-latest": ("qwen3.7-plus", "qwen3.6-plus", "qwen-plus"),
    "qwen-turbo": ("qwen-flash", "qwen3.8-flash", "qwen3.6-flash"),
    "qwen-turbo-latest": ("qwen-flash", "qwen3.8-flash", "qwen3.6-flash"),
    # Its files by id are another matter; what remains is a long context.
    "qwen-long": ("qwen3.7-plus", "qwen3.6-plus", "qwen-plus"),
    "qwen-coder-plus": ("qwen3-coder-plus", "qwen3-coder-next"),
    "qwen-coder-plus-latest": ("qwen3-coder-plus", "qwen3-coder-next"),
    "qwen-coder-turbo": ("qwen3-coder-flash", "qwen3-coder-plus"),
    "qwen-coder-turbo-latest": ("qwen3-coder-flash", "qwen3-coder-plus"),
    "qwen-vl-max": ("qwen3-vl-plus", "qwen3.7-plus", "qwen3.6-plus"),
    "qwen-vl-max-latest": ("qwen3-vl-plus", "qwen3.7-plus", "qwen3.6-plus"),
    "qwen-vl-plus": ("qwen3-vl-flash", "qwen3-vl-plus", "qwen3.6-flash"),
    "qwen-vl-plus-latest": ("qwen3-vl-flash", "qwen3-vl-plus", "qwen3.6-flash"),
}


@dataclass(frozen=True)
class ModelRef:
    """One way to read a model name.

    Attributes:
        model: the upstream's name.
        account: the only account that may answer; None for any.
        search: the model is to search the web.
        thinking: the model is to think; None leaves it as it is.
        renamed: `model` stands for an old name (`OLD_NAMES`).
    """

    model: str
    account: str | None = None
    search: bool = False
    thinking: bool | None = None
    renamed: bool = False


def interpretations(
    name: str, *, aliases: Mapping[str, str], accounts: Collection[str]
) -> Iterator[ModelRef]:
    """The ways to read `name`, the one that changes least first.

    Args:
        aliases: names, or beginnings of names followed by `*`, and what they stand for.
        accounts: the names of the accounts: `dashscope:qwen3.7-plus` pins one of them.
    """
    seen = dict.fromkeys(
        each
        for literal in _without_namespace(name, aliases)
        for ref in _pinned(_aliased(literal, aliases), accounts)
        for each in _suffixed(ref)
    )
    yield from seen
    for each in seen:
        for model in OLD_NAMES.get(each.model, ()):
            yield replace(each, model=model, renamed=True)


def _aliased(name: str, aliases: Mapping[str, str]) -> str:
    found = alias_of(name, aliases)
    return name if found is None else found


def _without_namespace(name: str, aliases: Mapping[str, str]) -> Iterator[str]:
    """The name, and what is in Anthropic's namespace: it may be an alias or pin an account, too.

    An alias of the whole name is the operator's decision.
    """
    yield name
    model = name.removeprefix(ANTHROPIC)
    if model and model != name and alias_of(name, aliases) is None:
        yield model


def listed_aliases(
    aliases: Mapping[str, str], models: Collection[str], *, accounts: Collection[str]
) -> dict[str, str]:
    """The aliases that a list of models can show, and the listed model behind each.

    Those of the operator without `*`, and old names; none that is the name of a listed model.
    """
    found = {}
    for name in dict.fromkeys([*aliases, *OLD_NAMES]):
        if name in models or name.endswith("*"):
            continue
        for ref in interpretations(name, aliases=aliases, accounts=accounts):
            if ref.model in models:
                found[name] = ref.model
                break
    return found


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
