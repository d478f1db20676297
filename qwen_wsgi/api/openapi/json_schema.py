"""Short forms for the JSON Schemas of the description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]


def text(meaning: str = "", *among: str, **more: Any) -> Schema:
    """A string.

    Args:
        among: the only values that there are.
    """
    return _of("string", meaning, **({"enum": list(among)} if among else {}), **more)


def integer(meaning: str = "", **more: Any) -> Schema:
    """A whole number."""
    return _of("integer", meaning, **more)


def number(meaning: str = "", **more: Any) -> Schema:
    """A number."""
    return _of("number", meaning, **more)


def flag(meaning: str = "") -> Schema:
    """True or false."""
    return _of("boolean", meaning)


def anything(meaning: str = "") -> Schema:
    """Any JSON."""
    return {"description": meaning} if meaning else {}


def mapping(meaning: str = "") -> Schema:
    """An object with any members."""
    return _of("object", meaning)


def file(meaning: str = "") -> Schema:
    """A file, as the field of a form."""
    return _of("string", meaning, contentMediaType="application/octet-stream")


def array(items: Schema, meaning: str = "", **more: Any) -> Schema:
    """A list."""
    return _of("array", meaning, items=items, **more)


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def either(*schemas: Schema, meaning: str = "") -> Schema:
    """What obeys one of some schemas."""
    return {"anyOf": list(schemas), **({"description": meaning} if meaning else {})}


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if not schema.keys() - {"description"}:
        return schema
    inner = {name: value for name, value in schema.items() if name != "description"}
    return either(inner, {"type": "null"}, meaning=schema.get("description", ""))


def answer(properties: Mapping[str, Schema], *, optional: Iterable[str] = ()) -> Schema:
    """An object of an answer: it has all of its members but for the optional ones, and may have
    more of them in a later version."""
    optional = frozenset(optional)
    unknown = optional - properties.keys()
    assert not unknown, unknown
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": dict(properties),
    }


def request(
    properties: Mapping[str, Schema], *, required: Iterable[str] = (), **more: Any
) -> Schema:
    """An object of a request: a member that is not required may be null, which is as if it were
    left out."""
    needed = list(required)
    return {
        "type": "object",
        "required": needed,
        "properties": {
            name: schema if name in needed else maybe(schema) for name, schema in properties.items()
        },
        **more,
    }


def listed(items: Schema, **more: Schema) -> Schema:
    """A list in OpenAI's form."""
    return answer({"object": text("", "list"), "data": array(items), **more})


def page(items: Schema) -> Schema:
    """A page of a list in OpenAI's form."""
    return listed(
        items,
        first_id=maybe(text("The id of the first entry.")),
        last_id=maybe(text("The id of the last entry: `after` for the next page.")),
        has_more=flag("Whether there are more entries."),
    )


def _of(kind: str, meaning: str, **more: Any) -> Schema:
    return {"type": kind, **({"description": meaning} if meaning else {}), **more}
