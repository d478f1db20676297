"""The models of the web API, and their variants by the end of their names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.json_access import items, mapping, objects, text

THINKING: Final = "thinking"
SEARCH: Final = "search"
DEEP_RESEARCH: Final = "deep-research"
#: Variants of names that chat.
VARIANTS: Final = (THINKING, SEARCH, DEEP_RESEARCH)
IMAGE: Final = "image"
VIDEO: Final = "video"
#: Variants that make something else, and what that is.
MEDIA: Final = {IMAGE: "pictures", VIDEO: "videos"}

#: The names that are documented, for when no live list is there.
FALLBACK: Final = (
    *("qwen-max", "qwen-max-latest", "qwen-max-0428"),
    *("qwen-max-thinking", "qwen-max-search", "qwen-max-deep-research", "qwen-max-video"),
    *("qwen-plus", "qwen-plus-latest"),
    *("qwen-plus-thinking", "qwen-plus-search", "qwen-plus-deep-research", "qwen-plus-video"),
    *("qwen-turbo", "qwen-turbo-latest"),
    *("qwen-turbo-thinking", "qwen-turbo-search", "qwen-turbo-deep-research", "qwen-turbo-video"),
    *("qwen-long", "qwen-long-thinking", "qwen-long-search"),
    *("qwen-long-deep-research", "qwen-long-video"),
    *("qwen-deep-research", "qwen3-coder-plus", "qwen-coder-plus"),
)
#: A model of its own, and no variant.
_WHOLE: Final = frozenset({"qwen-deep-research"})


class Named(NamedTuple):
    """A model as the web API knows it, and the variant that a client asked for, or ""."""

    model: str
    variant: str


def named(name: str, listed: Collection[str] = ()) -> Named:
    """Split a client's name for a model.

    Args:
        listed: ids that the host itself lists: those are no variants, however they end.
    """
    if name in _WHOLE:
        return Named(name, DEEP_RESEARCH)
    if name not in listed:
        for variant in (*VARIANTS, *MEDIA):
            if name.endswith("-" + variant):
                return Named(name.removesuffix("-" + variant), variant)
    return Named(name, "")


def entries_of(value: Any) -> dict[str, dict[str, Any]] | None:
    """Entries for a list of models by id, variants included; None if it is no list.

    Args:
        value: the answer of `GET /api/models`, `{"data": [...]}`, or of the second version, where
            the list is one `data` deeper.
    """
    data = value.get("data") if isinstance(value, dict) else None
    if isinstance(data, dict):
        data = data.get("data")
    if not isinstance(data, list):
        return None
    found: dict[str, dict[str, Any]] = {}
    for each in objects(data):
        if id := text(each.get("id")):
            found[id] = _entry(each)
    for id, entry in list(found.items()):
        for variant in entry.pop("variants"):
            name = f"{id}-{variant}"
            if name not in found:
                found[name] = {**entry, "variant_of": id}
    return found


def fallback_entries() -> dict[str, dict[str, Any]]:
    """The documented names."""
    return {
        name: {"variant_of": model} if (model := named(name).model) != name else {}
        for name in FALLBACK
    }


def _entry(listed: dict[str, Any]) -> dict[str, Any]:
    meta = mapping(mapping(listed.get("info")).get("meta"))
    entry: dict[str, Any] = {"owned_by": "web", "variants": list(_variants(meta))}
    if name := text(listed.get("name")):
        entry["name"] = name
    if description := text(meta.get("description")):
        entry["description"] = description
    length = meta.get("max_context_length")
    if isinstance(length, int) and not isinstance(length, bool) and length > 0:
        entry["context_length"] = length
    return entry


def _variants(meta: dict[str, Any]) -> Iterator[str]:
    kinds = [kind for kind in items(meta.get("chat_type")) if isinstance(kind, str)]
    if mapping(meta.get("abilities")).get("thinking"):
        yield THINKING
    if "search" in kinds:
        yield SEARCH
    if "deep_research" in kinds:
        yield DEEP_RESEARCH
    if "t2i" in kinds or "image_edit" in kinds:
        yield IMAGE
    if "t2v" in kinds:
        yield VIDEO
