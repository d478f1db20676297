"""What OpenAI's published schema says of the answers that we give, as JSON Schema (README.md)."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from qwen_wsgi.api.openapi.answers import SCHEMAS

#: The schemas by name of file: `{"$defs": {name: schema}}`. The server describes itself by them.
FILES: Final[dict[str, dict[str, Any]]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.json"))
}

_REGISTRY: Final[Registry[Any]] = Registry().with_resources(
    (f"{stem}.json", DRAFT202012.create_resource(value)) for stem, value in FILES.items()
)


@cache
def validator(name: str) -> Draft202012Validator:
    """For the schema `file#name`, e.g. `chat#completion`."""
    file, _, definition = name.partition("#")
    if definition not in FILES[file]["$defs"]:
        raise KeyError(name)
    return Draft202012Validator({"$ref": f"{file}.json#/$defs/{definition}"}, registry=_REGISTRY)


def violations(name: str, document: Any) -> list[str]:
    """What is wrong with a document, a line for each fault; empty if it obeys the schema."""
    return [
        f"{error.json_path}: {error.message}"
        for error in sorted(validator(name).iter_errors(document), key=lambda e: e.json_path)
    ]


def check(name: str, document: Any) -> None:
    """Fail unless a document obeys the schema `file#name`."""
    found = violations(name, document)
    assert not found, f"not a {name}:\n" + "\n".join(found) + f"\n{json.dumps(document)[:2000]}"


def check_event(event: Any) -> None:
    """Fail unless it is an event of a response's stream, of a type that we know."""
    kind = event.get("type") if isinstance(event, dict) else None
    assert kind in FILES["response_events"]["$defs"], f"no such event: {json.dumps(event)[:500]}"
    check(f"response_events#{kind}", event)


#: Members that DashScope fills with null where OpenAI leaves them out. They stay where nothing else
#: of a chunk is changed (docs/decisions/011), and the SDKs take them.
_NULLS_OF_A_DELTA: Final = ("role", "function_call", "tool_calls")
_NULLS_OF_AN_ANSWER: Final = ("system_fingerprint",)
_NULLS_OF_USAGE: Final = ("prompt_tokens_details", "completion_tokens_details")


def check_but_for_nulls(name: str, answer: dict[str, Any]) -> None:
    """Fail unless an answer or a chunk, in chat's form or the legacy one, obeys its schema, but for
    the nulls that stay, and for `refusal` in a chunk's `logprobs`, which may be left out for null.
    """
    made = _without(answer, _NULLS_OF_AN_ANSWER)
    if isinstance(made.get("usage"), dict):
        made["usage"] = _without(made["usage"], _NULLS_OF_USAGE)
    if name == "chat#chunk":
        made["choices"] = [_chunk_choice(choice) for choice in made["choices"]]
    check(name, made)


def _chunk_choice(choice: dict[str, Any]) -> dict[str, Any]:
    made = {**choice, "delta": _without(choice["delta"], _NULLS_OF_A_DELTA)}
    if isinstance(made.get("logprobs"), dict):
        made["logprobs"] = {"refusal": None, **made["logprobs"]}
    return made


def _without(value: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if v is not None or k not in names}
