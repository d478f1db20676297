"""The record of every call, and the one log line that it becomes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from qwen_wsgi.protocol.usage import Usage

log = logging.getLogger("qwen_wsgi.calls")


@dataclass
class CallRecord:
    """One client request while it runs; its owner fills it in. Times are monotonic seconds.

    Attributes:
        outcome: `complete`, `refused` (by us), `upstream_error`, `client_gone`,
            `cut_by_stop`, `failed` (a fault of ours), or `open`.
        usage: as the upstream told; None is "unknown", never an estimate.
    """

    request_id: str
    client: str
    method: str
    path: str
    started_at: float
    account: str = ""
    model: str = ""
    stream: bool = False
    status: int = 0
    attempts: int = 0
    queued_s: float = 0.0
    connect_s: float = 0.0
    longest_gap_s: float = 0.0
    first_byte_at: float | None = None
    ended_at: float | None = None
    usage: Usage | None = None
    outcome: str = "open"
    error_code: str = ""
    upstream_request_id: str = ""
    #: Not worth a line at INFO: health checks and the landing page.
    quiet: bool = field(default=False)


class Ledger:
    """Takes every call exactly once, at its end."""

    def record(self, call: CallRecord) -> None:
        """Write the call's line."""
        level = logging.DEBUG if call.quiet else logging.INFO
        if log.isEnabledFor(level):
            # Not log.log(): it looks for the caller's line, which is always this one.
            record = logging.LogRecord(log.name, level, __file__, 0, "call", (), None)
            record.fields = fields(call)
            log.handle(record)


def fields(call: CallRecord) -> dict[str, Any]:
    """The call as the log line's fields; unknown ones are left out. Durations in milliseconds."""
    usage = call.usage or Usage()
    ended = call.started_at if call.ended_at is None else call.ended_at
    first = None if call.first_byte_at is None else call.first_byte_at - call.started_at
    told: dict[str, Any] = {
        "request_id": call.request_id,
        "client": call.client,
        "method": call.method,
        "path": call.path,
        "status": call.status or None,
        "outcome": call.outcome,
        "account": call.account or None,
        "model": call.model or None,
        "stream": call.stream or None,
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
        "error": call.error_code or None,
        "upstream_request_id": call.upstream_request_id or None,
    }
    return {name: value for name, value in told.items() if value is not None}
