"""A chat request: what must be understood of it, and the bytes that go upstream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.validation import wrong_type


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
