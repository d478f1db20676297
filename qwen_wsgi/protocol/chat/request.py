"""Parses a chat request and renders the body for the upstream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.translation import search
from qwen_wsgi.protocol.validation import missing, wrong_type


@dataclass(slots=True)  # a frozen one would take a call for each member, with each request
class ChatRequest:
    """A client's request: the members that the proxy uses, and the whole object unchanged. Nobody
    changes it."""

    body: JsonObject
    model: str
    stream: bool
    #: The client asked for `stream_options.include_usage` itself.
    wants_usage: bool
    #: Members that a translation added; to drop one of them loses nothing the client asked for.
    added: frozenset[str] = frozenset()
    #: The client's names for members that a translation renamed; None if the client sent chat.
    origins: Mapping[str, str] | None = None
    #: The texts of attached PDFs by their base64, for hosts that take no files.
    documents: Mapping[str, str] = field(default_factory=dict)
    #: Names of functions that a translation made of custom tools; their calls are turned back.
    customs: frozenset[str] = frozenset()
    #: The host may search the web, so that the answer may name pages.
    searches: bool = False
    #: The call may wait longer and is to cost less (`service_tier`).
    flex: bool = False


_ABSENT: Final = object()
_NO_NAMES: Final[frozenset[str]] = frozenset()
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
#: Members without which a request wants no search (`search.is_requested`).
_SEARCHING: Final = frozenset({"enable_search", "tools", "web_search_options"})


def parse_request(
    body: JsonObject, *, added: Collection[str] = (), origins: Mapping[str, str] | None = None
) -> ChatRequest:
    """Check the members that the proxy uses; leave the rest to the upstream.

    Args:
        added, origins: see `ChatRequest`.

    Raises:
        BadRequest: with OpenAI's `param` and `code`, for a missing or ill-typed `model`,
            `messages`, `stream` or `stream_options`.
    """
    model = validation.text(body, "model") or ""
    _check_messages(body)
    names = body.names()
    if "tools" in names or "tool_choice" in names:
        body = _with_nested_tools(body)
    stream = validation.flag(body, "stream") if "stream" in names else None
    options = validation.mapping(body, "stream_options") if "stream_options" in names else None
    if options is not None and not stream:
        raise BadRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )
    return ChatRequest(
        body=body,
        model=model,
        stream=bool(stream),
        wants_usage=bool(options and options.get("include_usage")),
        added=frozenset(added) if added else _NO_NAMES,
        origins=origins,
        searches=not _SEARCHING.isdisjoint(names) and search.is_requested(body),
        flex="service_tier" in names and body["service_tier"] == "flex",
    )


def _with_nested_tools(body: JsonObject) -> JsonObject:
    """Turn the flat tools of the Responses API, which Cursor sends, into those of chat."""
    changes: dict[str, Any] = {}
    tools = body.get("tools")
    if isinstance(tools, list) and any(map(_is_flat, tools)):
        changes["tools"] = [_nested(tool) if _is_flat(tool) else tool for tool in tools]
    choice = body.get("tool_choice")
    if choice is not None and _is_flat(choice):
        changes["tool_choice"] = _nested(choice)
    return JsonObject(body.render(changes)) if changes else body


#: The types of tools that are flat in the Responses API, and what chat has in an inner object.
_INNER: Final[Mapping[str, tuple[str, ...]]] = {
    "function": ("name", "description", "parameters", "strict"),
    "custom": ("name", "description", "format"),
}


def _is_flat(tool: Any) -> bool:
    if not isinstance(tool, dict) or (kind := tool.get("type")).__class__ is not str:
        return False
    return kind in _INNER and kind not in tool and isinstance(tool.get("name"), str)


def _nested(tool: dict[str, Any]) -> dict[str, Any]:
    kind: str = tool["type"]
    members = _INNER[kind]
    inner = {name: tool[name] for name in members if tool.get(name) is not None}
    form = inner.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar" and "grammar" not in form:
        grammar = {name: value for name, value in form.items() if name != "type"}
        inner["format"] = {"type": "grammar", "grammar": grammar}
    others = {name: value for name, value in tool.items() if name not in members}
    return {**others, kind: inner}


def _check_messages(body: JsonObject) -> None:
    messages = body.get("messages", _ABSENT)
    if messages is _ABSENT:
        raise missing("messages")
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
            raise missing(f"messages[{index}].role")
        if not isinstance(role, str):
            raise wrong_type(f"messages[{index}].role", "a string", role)


def upstream_body(
    request: ChatRequest,
    *,
    model: str,
    stream: bool,
    changes: Mapping[str, Any] = _NOTHING,
    drop: Collection[str] = (),
) -> bytes:
    """Render the body for the upstream: the client's bytes, except for the model, the streaming
    and the `changes` and `drop` of the adaption.

    A stream always includes usage, because the ledger counts every call.
    """
    body = request.body
    is_asked_for = not stream and body.get("stream_options", _ABSENT) is _ABSENT
    if is_asked_for and not changes and not drop and body.get("model") == model:
        return body.source  # as it is, without a further look
    changes, drop = dict(changes), set(drop)
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
