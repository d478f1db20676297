"""Builds an instance of a JSON schema, for tool arguments and JSON answers. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Recursive schemas end here.
_MAX_DEPTH: Final = 8
_FORMATS: Final = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "sandbox@example.com",
    "uri": "https://example.com/sandbox",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def instance_of(schema: object, name: str = "value") -> Any:
    """Return a small value that the schema probably accepts, with only required properties."""
    return _instance(schema, name, schema, 0)


def _instance(schema: object, name: str, root: object, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return f"sandbox {name}"
    schema = _resolved(schema, root)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    for several in ("enum", "examples"):
        if isinstance(schema.get(several), list) and schema[several]:
            return schema[several][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(several), list) and schema[several]:
            return _instance(schema[several][0], name, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind == "object":
        return _object(schema, root, depth)
    if kind == "array":
        size = _small_int(schema.get("minItems"), 1)
        return [_instance(schema.get("items", {}), name, root, depth + 1) for _ in range(size)]
    return _scalar(schema, str(kind), name)


def _object(schema: Mapping[str, Any], root: object, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    required = schema.get("required")
    names = [one for one in required if one in properties] if isinstance(required, list) else []
    return {
        str(one): _instance(properties[one], str(one), root, depth + 1)
        for one in (names or properties)
    }


def _scalar(schema: Mapping[str, Any], kind: str, name: str) -> Any:
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        return low + 1 if isinstance(low, (int, float)) else 1
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    text = _FORMATS.get(str(schema.get("format")), f"sandbox {name}")
    limit = schema.get("maxLength")
    return text[:limit] if isinstance(limit, int) else text


def _resolved(schema: Mapping[str, Any], root: object) -> Mapping[str, Any]:
    """Follow local references such as `#/$defs/Name`."""
    for _ in range(_MAX_DEPTH):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target: object = root
        for step in reference[2:].split("/"):
            target = target.get(step, {}) if isinstance(target, Mapping) else {}
        if not isinstance(target, Mapping):
            return {}
        schema = target
    return {}


def _small_int(value: object, absent: int) -> int:
    return min(value, 10) if isinstance(value, int) and value > 0 else absent
