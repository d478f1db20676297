"""The log of calls: one line per call, at its end."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from qwen_wsgi import logs
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.usage import Usage

#: Characters of what a client or an upstream made up.
_LONGEST: Final = 200
#: Tools that are named.
_MOST_TOOLS: Final = 20
#: Beginnings of lines that are remembered.
_MOST_KNOWN: Final = 500
#: A shorter time is rounded to 0.0. Milliseconds.
_LEAST_MS: Final = 0.05

#: An id that stands in a line as it is, in both of its styles.
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9._:/+@-]{1,200}").fullmatch

_NOTHING: Final = Usage()

log = logging.getLogger("qwen_wsgi.calls")


def write(call: CallRecord) -> None:
    """Write the call's log line."""
    level = logging.DEBUG if call.quiet else logging.INFO
    if not log.isEnabledFor(level):
        return
    handler = logs.only(log, level)
    if handler is not None:
        lines = _OF_JSON if handler.formatter.is_json else _FOR_PEOPLE
        handler.write(level, log.name, "call", lines.fields(call))
    else:
        # Not log.log(): it looks up the caller's line, which is always this one.
        line = logging.LogRecord(log.name, level, __file__, 0, "call", (), None)
        line.fields = fields(call)
        log.handle(line)


def told_tools(tools: Mapping[str, int]) -> str:
    """Which tools the proxy has run: `time.now=2,python=1`, printable and bounded."""
    named = [f"{header_token(name)}={count}" for name, count in tools.items()]
    return ",".join(named[:_MOST_TOOLS]) + (",..." if len(named) > _MOST_TOOLS else "")


def fields(call: CallRecord) -> dict[str, Any]:
    """The call as the log line's fields; unknown ones are left out. Durations in milliseconds."""
    usage = call.usage or _NOTHING
    ended = call.started_at if call.ended_at is None else call.ended_at
    first = None if call.first_byte_at is None else call.first_byte_at - call.started_at
    known: dict[str, Any] = {
        "request_id": call.request_id,
        **_like_others(call),
        "queue_ms": round(call.queued_s * 1000, 1) or None,
        "connect_ms": round(call.connect_s * 1000, 1) or None,
        "first_byte_ms": None if first is None else round(first * 1000, 1),
        "longest_gap_ms": round(call.longest_gap_s * 1000, 1) or None,
        "total_ms": round((ended - call.started_at) * 1000, 1),
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
        "cache_written_tokens": usage.cache_written,
        "reasoning_tokens": usage.reasoning,
        **_rare(call),
        "upstream_request_id": call.upstream_request_id or None,
    }
    return _known(known)


def _like_others(call: CallRecord) -> dict[str, Any]:
    """The fields that are the same for many calls."""
    return {
        "client": call.client,
        "address": call.address or None,
        "method": call.method,
        "path": call.path[:_LONGEST],
        "status": call.status or None,
        "outcome": call.outcome,
        "account": call.account or None,
        "model": (call.upstream_model or call.model)[:_LONGEST] or None,
        "stream": call.stream or None,
        "cache": call.cache or None,
        "attempts": call.attempts or None,
    }


def _rare(call: CallRecord) -> dict[str, Any]:
    """The fields that most calls do not have."""
    tools, error = told_tools(call.tools), call.error_code[:_LONGEST]
    return {**dict(call.units), "tools": tools or None, "error": error or None}


#: The numbers of a line, in their order.
_TIMES: Final = ("queue_ms", "connect_ms", "first_byte_ms", "longest_gap_ms", "total_ms")
_TOKENS: Final = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_written_tokens",
    "reasoning_tokens",
)


class Lines:
    """Renders `fields` of calls in one style of the log: what is the same for many calls once.

    Args:
        render: renders any fields, as a text.
        name: the form of a name before its value.
        between: what is between two fields.
        text: the form of a value that is a plain text.
    """

    def __init__(
        self, render: Callable[[Mapping[str, Any]], str], name: str, between: str, text: str
    ) -> None:
        self._render = render
        self._between = between
        self._known: dict[tuple[object, ...], str] = {}
        self._times = tuple(between + name % each for each in _TIMES)
        self._tokens = tuple(between + name % each for each in _TOKENS)
        self._begin = name % "request_id" + text + between + "%s"
        self._end = between + name % "upstream_request_id" + text

    def fields(self, call: CallRecord) -> str:
        """The text of `fields(call)`."""
        queue, connect, first, gap, total = self._times
        line, begun, ended = self._first_ones(call), call.started_at, call.ended_at
        if (ms := call.queued_s * 1000) >= _LEAST_MS:
            line += f"{queue}{ms:.1f}"
        if (ms := call.connect_s * 1000) >= _LEAST_MS:
            line += f"{connect}{ms:.1f}"
        if call.first_byte_at is not None:
            line += f"{first}{(call.first_byte_at - begun) * 1000:.1f}"
        if (ms := call.longest_gap_s * 1000) >= _LEAST_MS:
            line += f"{gap}{ms:.1f}"
        line += f"{total}{0.0 if ended is None else (ended - begun) * 1000:.1f}"
        usage = call.usage
        if usage is not None:
            prompt, completion, cached, written, reasoning = self._tokens
            if usage.prompt is not None:
                line += f"{prompt}{usage.prompt}"
            if usage.completion is not None:
                line += f"{completion}{usage.completion}"
            if usage.cached is not None:
                line += f"{cached}{usage.cached}"
            if usage.cache_written is not None:
                line += f"{written}{usage.cache_written}"
            if usage.reasoning is not None:
                line += f"{reasoning}{usage.reasoning}"
        if call.units or call.tools or call.error_code:
            line += self._between + self._render(_known(_rare(call)))
        if id := call.upstream_request_id:
            if _PLAIN_ID(id):
                return line + self._end % id
            line += self._between + self._render({"upstream_request_id": id})
        return line

    def _first_ones(self, call: CallRecord) -> str:
        model = call.upstream_model or call.model
        key = (
            call.path[:_LONGEST],
            model[:_LONGEST],
            call.client,
            call.address,
            call.method,
            call.status,
            call.outcome,
            call.account,
            call.stream,
            call.cache,
            call.attempts,
        )
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[key] = self._render(_known(_like_others(call)))
        if _PLAIN_ID(call.request_id):
            return self._begin % (call.request_id, known)
        return self._render({"request_id": call.request_id}) + self._between + known


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


_FOR_PEOPLE: Final = Lines(logs.human_fields, "%s=", " ", "%s")
_OF_JSON: Final = Lines(logs.json_fields, '"%s": ', ", ", '"%s"')
