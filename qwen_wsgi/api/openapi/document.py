"""The whole description, as OpenAPI 3.1."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from qwen_wsgi import __version__
from qwen_wsgi.api.openapi import admin, answers, codes, files, generation, headers, media, server
from qwen_wsgi.api.openapi.json_schema import Schema, ref
from qwen_wsgi.api.openapi.operations import JSON, Operation, error_name, header_ref
from qwen_wsgi.protocol.json_object import encoded

_PARTS: Final = (generation, media, files, admin, server)

OPERATIONS: Final[tuple[Operation, ...]] = tuple(
    operation for part in _PARTS for operation in part.OPERATIONS
)

_WHAT: Final = """\
Qwen models behind OpenAI's and Anthropic's APIs. OpenAI's clients want the address of this server
with `/v1` as their base URL, Anthropic's the address alone.

Every answer has an `x-request-id`, by which the server's log knows the call. Errors have OpenAI's
form; below `/v1/messages`, and for clients that send `anthropic-version`, Anthropic's. Their `code`
is one of those below, or the upstream's own. A request that the server cannot read at all is
refused with 400 before any of this applies, and an unknown URL with 404.

Pages of the console (`/console`) are for browsers with a session, and not described.

Objects are open: requests may have more members, which are passed on or listed in
`x-qwen-proxy-changed`, and later versions may answer with more.
"""

_SECURITY: Final = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A client key. Without any, the server serves its own machine only.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's clients send it.",
    },
}


def document() -> dict[str, Any]:
    """The description; new each time."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = operation.render()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qwen-proxy",
            "version": __version__,
            "summary": "Qwen models behind OpenAI's and Anthropic's APIs.",
            "description": _WHAT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(each.tag for each in OPERATIONS)],
        "security": [{"key": []}, {"x-api-key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "headers": {
                name: {"description": header.meaning, "schema": {"type": header.schema}}
                for name, header in headers.SENT.items()
            },
            "responses": _errors(),
            "securitySchemes": _SECURITY,
        },
    }


@functools.cache
def rendered() -> bytes:
    """The description as JSON, made once."""
    return encoded(document())


def _schemas() -> dict[str, Schema]:
    found = answers.schemas()
    events = [name for name in found if name.startswith("response_events.")]
    found["responses.event"] = {"anyOf": [ref(name) for name in events]}
    for part in _PARTS:
        assert not found.keys() & part.SCHEMAS.keys()
        found.update(part.SCHEMAS)
    return found


def _errors() -> dict[str, Any]:
    """The answers of errors, by their names."""
    kinds = {(status, each.anthropic) for each in OPERATIONS for status in each.statuses}
    found = {
        error_name(status, anthropic=anthropic): _error(status, anthropic=anthropic)
        for status, anthropic in kinds
    }
    return dict(sorted(found.items()))


def _error(status: int, *, anthropic: bool) -> dict[str, Any]:
    sent: Mapping[str, Any] = {**headers.ALWAYS, **headers.OF_ACCOUNT, **headers.OF_LIMITS}
    if anthropic:
        sent = {**sent, **headers.OF_ANTHROPIC}
    schema = ref("anthropic_error" if anthropic else "error.envelope")
    named = ", ".join(f"`{name}`" for name in codes.of_status(status))
    meaning = HTTPStatus(status).phrase
    return {
        "description": f"{meaning}. Codes: {named}." if named else f"{meaning}.",
        "headers": {name: header_ref(name) for name in (*sent, *headers.OF_ERRORS)},
        "content": {JSON: {"schema": schema}},
    }
