"""The log of calls: one line per call, at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.usage import Usage

#: Characters of what a client or an upstream made up.
_LONGEST: Final = 200
#: Tools that are named.
_MOST_TOOLS: Final = 20

log = logging.getLogger("qwen_wsgi.calls")


def write(call: CallRecord) -> None:
    """Write the call's log line."""
    level = logging.DEBUG if call.quiet else logging.INFO
    if log.isEnabledFor(level):
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
    usage = call.usage or Usage()
    ended = call.started_at if call.ended_at is None else call.ended_at
    first = None if call.first_byte_at is None else call.first_byte_at - call.started_at
    known: dict[str, Any] = {
        "request_id": call.request_id,
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
        **dict(call.units),
        "tools": told_tools(call.tools) or None,
        "error": call.error_code[:_LONGEST] or None,
        "upstream_request_id": call.upstream_request_id or None,
    }
    return {name: value for name, value in known.items() if value is not None}
