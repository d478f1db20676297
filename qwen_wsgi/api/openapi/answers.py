"""The schemas of answers in OpenAI's forms: those of the files, with what this server adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.api.openapi.json_schema import Schema, maybe, text

#: Facts of OpenAI's published schema, as JSON Schema with `$defs`; tests hold answers to them.
SCHEMAS: Final = Path(__file__).parent / "schemas"

#: What hosts fill with null where OpenAI leaves it out, and what is passed on so, by schema.
_NULLS: Final[Mapping[str, tuple[str, ...]]] = {
    "chat.completion": ("system_fingerprint", "service_tier", "usage"),
    "chat.chunk": ("system_fingerprint", "service_tier"),
    "chat.delta": ("role", "function_call", "tool_calls"),
    "chat.usage": ("prompt_tokens_details", "completion_tokens_details"),
    "completions.completion": ("system_fingerprint",),
    "completions.chunk": ("system_fingerprint",),
}

#: What hosts leave out where OpenAI has null.
_LEFT_OUT: Final[Mapping[str, tuple[str, ...]]] = {"chat.logprobs": ("refusal",)}

#: Members of answers that OpenAI does not have.
_ADDED: Final[Mapping[str, Mapping[str, Schema]]] = {
    "chat.message": {"reasoning_content": maybe(text("What the model thought."))},
    "chat.delta": {"reasoning_content": maybe(text("The next piece of the model's thinking."))},
}


def schemas() -> dict[str, Schema]:
    """All schemas by their names in the description: `chat.completion`, …"""
    found: dict[str, Schema] = {}
    for path in sorted(SCHEMAS.glob("*.json")):
        definitions = json.loads(path.read_text())["$defs"]
        for name, schema in definitions.items():
            found[f"{path.stem}.{name}"] = _moved(schema, path.stem)
    for name, members in _NULLS.items():
        properties = found[name]["properties"]
        for member in members:
            if member in properties:
                properties[member] = maybe(properties[member])
    for name, members in _LEFT_OUT.items():
        found[name]["required"] = [each for each in found[name]["required"] if each not in members]
    for name, added in _ADDED.items():
        found[name]["properties"].update(added)
    return found


def _moved(value: Any, file: str) -> Any:
    """A schema whose references lead into the description."""
    if isinstance(value, list):
        return [_moved(each, file) for each in value]
    if not isinstance(value, dict):
        return value
    if isinstance(target := value.get("$ref"), str):
        place, _, name = target.partition("#/$defs/")
        return {"$ref": f"#/components/schemas/{place.removesuffix('.json') or file}.{name}"}
    return {name: _moved(each, file) for name, each in value.items()}
