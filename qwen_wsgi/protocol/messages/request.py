"""A Messages request as a chat request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import chat
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_access import Members
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError, compact
from qwen_wsgi.protocol.messages.history import messages_of, system_of
from qwen_wsgi.protocol.messages.tools import tools_of
from qwen_wsgi.protocol.messages.validation import (
    below,
    invalid,
    need,
    number,
    want,
    wrong,
)

#: What is made into something else.
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
        # Tells whose the conversation is, and is read for that from the request itself.
        "metadata",
    }
)

#: What concerns Anthropic's accounts, prices, betas and servers, and not what is answered.
_NO_MATTER: Final = frozenset(
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

#: What asks for more than a chat request can, and what this dialect could not tell the answer of.
_LOST: Final = frozenset({"container", "inference_geo", "mcp_servers", "thread"}) | frozenset(
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

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
#: Qwen's and chat's own words for thinking, which a client of Qwen may add.
_KNOBS: Final = ("enable_thinking", "thinking_budget", "reasoning_effort", "reasoning")


@dataclass(frozen=True)
class MessagesRequest:
    """A request in chat's form, and what its answer needs to know.

    Attributes:
        changed: what the translation changed or dropped, as in `Losses.changed`.
        stops: the stop sequences, one of which the answer may name.
    """

    chat: ChatRequest
    changed: tuple[str, ...]
    stops: tuple[str, ...]


def parse_request(body: JsonObject, *, strict: bool = False) -> MessagesRequest:
    """Translate a request of `POST /v1/messages`.

    Members that neither Anthropic nor this translation knows, such as `enable_search` or `seed`, go
    on as they are.

    Args:
        strict: refuse what would lose something that the client asked for.

    Raises:
        BadRequest: a member is missing or of another form than it should, or is refused.
    """
    changes = Changes(strict=strict)
    members = _prompt(body, changes)
    if model := want(body, "model", str):
        members["model"] = model
    stops = _stops(body)
    members |= _sampling(body, stops)
    members |= _thinking(body, changes)
    silent = all(body.get(name) is None for name in ("thinking", *_KNOBS))
    members |= _format(body)
    if want(body, "stream", bool):
        members |= {"stream": True, "stream_options": {"include_usage": True}}
    members |= _others(body, changes)
    try:
        request = chat.parse_request(
            JsonObject(compact(members).encode()), added=("enable_thinking",) if silent else ()
        )
    except JsonObjectError as error:  # a number such as 1e999, which JSON has and Python has not
        raise BadRequest(
            f"The request cannot be passed on: {error}.", code="invalid_value"
        ) from None
    except RecursionError:
        raise _too_deep() from None
    return MessagesRequest(request, changes.entries, tuple(stops))


def parse_prompt(body: Members) -> dict[str, Any]:
    """What a request of `POST /v1/messages/count_tokens` has counted, as a chat request.

    Shape: `{"messages": [...], "tools": [...]?, ...}`.

    Raises:
        BadRequest: as for `parse_request`.
    """
    try:
        return _prompt(body, Changes())
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> BadRequest:
    return BadRequest("The request is nested too deep.", code="invalid_value")


def _prompt(body: Members, changes: Changes) -> dict[str, Any]:
    """The members `messages` and `tools`, and what belongs to the latter."""
    told = need(body, "messages", list)
    history = list(messages_of(told, changes))
    if not history:
        raise invalid("messages", "at least one message that says something is required")
    return {
        "messages": [*system_of(body.get("system"), changes), *history],
        **tools_of(body, changes),
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
    """The thinking that was asked for; none if nobody asked.

    Claude's models do not think unless they are told to, Qwen's do from 3.5 on. So who says nothing
    of it, here or in Qwen's words, gets answers as quick and as cheap as there.
    """
    effort = _effort(body)
    wish = want(body, "thinking", dict)
    if wish is None:
        if effort:
            return {"reasoning_effort": effort}
        if any(body.get(name) is not None for name in _KNOBS):
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
    """A schema for the answer: `output_config.format`, or `output_format` of the beta before it."""
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
    """The members that go on as they are; the rest is noted."""
    kept = {}
    for name in body.names():
        value = body.get(name)
        if name in _TRANSLATED or value is None:
            continue
        if name in _NO_MATTER:
            changes.note(name, "dropped")
        elif name in _LOST:
            changes.lose(name, "has no counterpart in this translation")
        else:
            kept[name] = value
    return kept
