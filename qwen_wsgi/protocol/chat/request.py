"""Chat completions: the product's one internal language.

A request in OpenAI's form, and the few things that must be understood of it. Its two answers are at
home in `chunks` (a stream, as bytes) and `completion` (a whole), and can be had from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.chunks import ChatEncoder, ChunkStream
from qwen_wsgi.protocol.completion import Completion, chunks_of
from qwen_wsgi.protocol.failure import error_of
from qwen_wsgi.protocol.json_object import JsonObject

__all__ = [
    "ChatEncoder",
    "ChatRequest",
    "ChunkStream",
    "Completion",
    "chunks_of",
    "error_of",
    "parse_request",
    "upstream_body",
    "wrong_type",
]


@dataclass(frozen=True)
class ChatRequest:
    """A client's request: what we understood, and the object with everything else untouched."""

    body: JsonObject
    model: str
    stream: bool
    #: The client asked for `stream_options.include_usage` itself.
    wants_usage: bool
    #: Members that a translation added by itself: who did not ask for them does not lose them.
    added: frozenset[str] = frozenset()


def parse_request(body: JsonObject, *, added: Collection[str] = ()) -> ChatRequest:
    """Check what must be understood; leave the rest to the upstream.

    Args:
        added: members of which the client did not say anything.

    Raises:
        BadRequest: with OpenAI's `param` and `code`, for a missing or ill-typed `model`,
            `messages`, `stream` or `stream_options`.
    """
    model = body.get("model")
    if not isinstance(model, str | None):
        raise wrong_type("model", "a string", model)
    _check_messages(body)
    stream = body.get("stream")
    if not isinstance(stream, bool | None):
        raise wrong_type("stream", "a boolean", stream)
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        raise wrong_type("stream_options", "an object", options)
    if options is not None and not stream:
        raise BadRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    return ChatRequest(
        body=body,
        model=model or "",
        stream=bool(stream),
        wants_usage=bool(options and options.get("include_usage")),
        added=frozenset(added),
    )


def _check_messages(body: JsonObject) -> None:
    if "messages" not in body:
        raise BadRequest(
            "Missing required parameter: 'messages'.",
            param="messages",
            code="missing_required_parameter",
        )
    messages = body["messages"]
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise BadRequest(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{index}]", "an object", message)
        role = message.get("role")
        if role is None:
            raise BadRequest(
                f"Missing required parameter: 'messages[{index}].role'.",
                param=f"messages[{index}].role",
                code="missing_required_parameter",
            )
        if not isinstance(role, str):
            raise wrong_type(f"messages[{index}].role", "a string", role)


_JSON_TYPES: Final = {
    bool: "a boolean",
    str: "a string",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def wrong_type(param: str, expected: str, value: object) -> BadRequest:
    """A refusal, in OpenAI's words, of a value of another type than `expected`: `a string`."""
    got = _JSON_TYPES.get(type(value), "something else")
    return BadRequest(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        param=param,
        code="invalid_type",
    )


def upstream_body(
    request: ChatRequest,
    *,
    model: str,
    stream: bool,
    changes: Mapping[str, Any] = MappingProxyType({}),
    drop: Collection[str] = (),
) -> bytes:
    """The bytes for the upstream: the client's own, but for model, stream and usage option, and
    for what the host needs changed or dropped.

    Usage is always asked of a stream, because the ledger counts every call.
    """
    changes, drop = dict(changes), set(drop)
    body = request.body
    if body.get("model") != model:
        changes["model"] = model
    if stream:
        if body.get("stream") is not True:
            changes["stream"] = True
        if not request.wants_usage:
            changes["stream_options"] = {
                **(body.get("stream_options") or {}),
                "include_usage": True,
            }
    elif "stream_options" in body:
        drop.add("stream_options")  # only a null gets here: refused without a stream elsewhere
    return body.render(changes, drop=drop)
