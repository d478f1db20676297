"""Translates a Messages request to a chat request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import chat
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_access import Members
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError, compact
from qwen_wsgi.protocol.messages import server_tools
from qwen_wsgi.protocol.messages.history import messages_of, system_of
from qwen_wsgi.protocol.messages.server_tools import ServerTools
from qwen_wsgi.protocol.messages.tools import SEARCH, tools_of
from qwen_wsgi.protocol.messages.validation import (
    below,
    invalid,
    need,
    number,
    want,
    wrong,
)
from qwen_wsgi.protocol.server_tools.offer import Offer
from qwen_wsgi.protocol.translation import thinking

#: Members that are translated.
_TRANSLATED: Final = frozenset(
    {
        "model",
        "messages",
        "system",
        "tools",
        "tool_choice",
        "max_tokens",
        "stop_sequences",
        "temperature",
        "top_p",
        "top_k",
        "thinking",
        "output_config",
        "output_format",
        "stream",
        "mcp_servers",
        "container",
        # Read from the request itself, for the affinity of the conversation.
        "metadata",
    }
)

#: Members about Anthropic's accounts, prices, betas and servers, on which no answer depends.
_IGNORED: Final = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "billing_policy",
        "cache_control",
        "compaction",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)

#: Members that chat does not have, and members of chat whose answers this dialect cannot encode.
_LOST: Final = frozenset({"inference_geo"}) | frozenset(
    {
        "audio",
        "function_call",
        "functions",
        "logprobs",
        "max_completion_tokens",
        "modalities",
        "n",
        "stop",
        "stream_options",
        "top_logprobs",
    }
)

#: Members that change what an answer means, and that nothing here can honour.
_REFUSED: Final = ("conversation", "previous_response_id", "suffix", "thread")

#: Anthropic has no `none` and `minimal`, but Qwen's models do.
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
#: The members of chat that others of this dialect are translated to.
_ORIGINS: Final = {
    "enable_thinking": "thinking",
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_budget": "thinking.budget_tokens",
}


@dataclass(frozen=True)
class MessagesRequest:
    """A translated request.

    Attributes:
        changed: what the translation changed or dropped, as in `Changes.entries`.
        stream: the client wants events.
        stops: the stop sequences; the answer names the one that matched.
        searches: the client has a tool for web searches, and is shown what the host found.
        forces_search: an answer without a search would be an invented one.
        own: the operator's tools, which the proxy runs; None without any.
    """

    chat: ChatRequest
    changed: tuple[str, ...]
    stops: tuple[str, ...]
    searches: bool = False
    forces_search: bool = False
    own: ServerTools | None = None
    stream: bool = False


def parse_request(
    body: JsonObject, *, strict: bool = False, offer: Offer | None = None
) -> MessagesRequest:
    """Translate a request of `POST /v1/messages`.

    Members that Anthropic does not have, such as `enable_search` or `seed`, are passed on.

    Args:
        strict: refuse a request that would lose something the client asked for.
        offer: the operator's tools that the client may use; None if there are none.

    Raises:
        BadRequest: a member is missing, invalid, or refused.
        ApiError: one of the operator's tools cannot be used, or not with this key.
    """
    changes = Changes(strict=strict)
    _refuse(body)
    own = server_tools.selected(body, offer, changes)
    if body.get("container") is not None and not own.code:
        raise _refused("container")
    members = _prompt(body, own, changes)
    if model := want(body, "model", str):
        members["model"] = model
    stops = _stops(body)
    members |= _sampling(body, stops)
    members |= _thinking(body, changes)
    silent = not thinking.is_set(body)
    members |= _format(body)
    stream = want(body, "stream", bool)
    if stream or own.functions:  # turns are always read as streams
        members |= {"stream": True, "stream_options": {"include_usage": True}}
    members |= _others(body, changes)
    try:
        request = chat.parse_request(
            JsonObject(compact(members).encode()),
            added=("enable_thinking",) if silent else (),
            origins={name: own for name, own in _ORIGINS.items() if body.get(name) is None},
        )
    except JsonObjectError as error:  # a number such as 1e999, which JSON has and Python has not
        raise BadRequest(
            f"The request cannot be passed on: {error}.", code="invalid_value"
        ) from None
    except RecursionError:
        raise _too_deep() from None
    search = {"type": SEARCH}
    return MessagesRequest(
        request,
        changes.entries,
        tuple(stops),
        searches=search in members.get("tools", ()),
        forces_search=members.get("tool_choice") == search,
        own=own if own.functions else None,
        stream=bool(stream),
    )


def parse_prompt(body: Members) -> dict[str, Any]:
    """Translate a request of `POST /v1/messages/count_tokens`: only what is counted.

    Shape: `{"messages": [...], "tools": [...]?, ...}`.

    Raises:
        BadRequest: as for `parse_request`.
    """
    try:
        return _prompt(body, server_tools.selected(body, None, Changes()), Changes())
    except RecursionError:
        raise _too_deep() from None


def _refuse(body: Members) -> None:
    """Refuse what refers to something that is kept elsewhere, or means another kind of answer."""
    for name in _REFUSED:
        if body.get(name) is None:
            continue
        raise _refused(name)


def _refused(name: str) -> BadRequest:
    # Anthropic's SDK then sends the whole conversation (anthropic 2.14, `tool_runner`).
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return BadRequest(
        f"{name}: not supported here. Send the whole conversation as 'messages', without it.",
        param=name,
        code="unsupported_parameter",
        details=details if name == "thread" else None,
    )


def _too_deep() -> BadRequest:
    return BadRequest("The request is nested too deep.", code="invalid_value")


def _prompt(body: Members, own: ServerTools, changes: Changes) -> dict[str, Any]:
    """Translate the messages, the tools and the choice of a tool."""
    given = need(body, "messages", list)
    history = list(messages_of(given, changes, own.functions))
    if not history:
        raise invalid("messages", "at least one message with content is required")
    return {
        "messages": [*system_of(body.get("system"), changes), *history],
        **tools_of(body, own, changes),
    }


def _stops(body: Members) -> list[str]:
    stops = want(body, "stop_sequences", list) or []
    for index, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise wrong(below("stop_sequences", index), "a valid string")
    return stops


def _sampling(body: Members, stops: list[str]) -> dict[str, Any]:
    limit = need(body, "max_tokens", int)
    if limit < 1:
        raise invalid("max_tokens", "Input should be greater than or equal to 1")
    members: dict[str, Any] = {"max_completion_tokens": limit}
    for name in ("temperature", "top_p"):
        if (value := number(body, name)) is not None:
            members[name] = value
    if (top_k := want(body, "top_k", int)) is not None:
        members["top_k"] = top_k
    if stops:
        members["stop"] = stops
    return members


def _thinking(body: Members, changes: Changes) -> dict[str, Any]:
    """Translate the parameters for thinking; without any, thinking is switched off.

    Claude's models think only on request, Qwen's from 3.5 on by default. So a client that does not
    set it, here or in Qwen's members, gets answers as fast and as cheap as at Anthropic.
    """
    effort = _effort(body)
    wish = want(body, "thinking", dict)
    if wish is None:
        if effort:
            return {"reasoning_effort": effort}
        if thinking.is_set(body, but=("thinking",)):  # by members of chat that the client added
            return {}
        changes.note("thinking", "off-by-default")
        return {"enable_thinking": False}
    kind = need(wish, "type", str, "thinking")
    if kind == "disabled":
        return {"enable_thinking": False}
    if wish.get("display") == "omitted":
        changes.note("thinking.display", "shown")
    if kind in ("adaptive", "between_tools"):
        return {"enable_thinking": True} | ({"reasoning_effort": effort} if effort else {})
    if kind != "enabled":
        raise wrong("thinking.type", "'enabled', 'disabled' or 'adaptive'")
    budget = need(wish, "budget_tokens", int, "thinking")
    if budget < 1:
        raise invalid("thinking.budget_tokens", "Input should be greater than or equal to 1")
    if effort:
        changes.note("output_config.effort", "budget-instead")
    return {"enable_thinking": True, "thinking_budget": budget}


def _effort(body: Members) -> str | None:
    effort = want(want(body, "output_config", dict) or {}, "effort", str, "output_config")
    if effort is not None and effort not in _EFFORTS:
        raise wrong("output_config.effort", "one of " + ", ".join(_EFFORTS))
    return effort


def _format(body: Members) -> dict[str, Any]:
    """Translate the answer's schema: `output_config.format`, or the beta's `output_format`."""
    holder, path = want(body, "output_config", dict) or {}, "output_config.format"
    wanted = want(holder, "format", dict, "output_config")
    if wanted is None:
        wanted, path = want(body, "output_format", dict), "output_format"
    if wanted is None:
        return {}
    if need(wanted, "type", str, path) != "json_schema":
        raise wrong(below(path, "type"), "'json_schema'")
    schema = need(wanted, "schema", dict, path)
    described = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def _others(body: JsonObject, changes: Changes) -> dict[str, Any]:
    """Keep the members that are passed on; list the others as dropped."""
    kept = {}
    for name in body.names():
        value = body.get(name)
        if name in _TRANSLATED or value is None:
            continue
        if name in _IGNORED:
            changes.note(name, "dropped")
        elif name in _LOST:
            changes.lose(name, "has no counterpart in this translation")
        else:
            kept[name] = value
    return kept
