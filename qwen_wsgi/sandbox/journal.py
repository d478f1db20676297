"""The log of the sandbox: one record per request, counters, and waiting for a condition.

The log contains request bodies, with which tests check what reached the upstream, but never a
credential: headers with one are reduced to their last four characters, and bodies of the OAuth
routes are not kept.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.sandbox.wire import Request

MAX_RECORDS: Final = 1000
# Of all bodies together; then the oldest are dropped (the record keeps their size).
MAX_BODY_BYTES: Final = 64 * 1024 * 1024

_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "x-api-key", "cookie"})


@dataclass(slots=True)
class Record:
    """One request and its outcome. Times are time.monotonic() seconds.

    `outcome`: open (in progress), complete (the whole intended answer was sent), error (an error
    status was sent), cut or reset (the sandbox broke the connection deliberately), client_gone (the
    client disconnected first; `gone_s` is when this was noticed), stopped (the sandbox was
    stopped), failed (an error of the sandbox itself; the state shows it as `last_failure`).
    `usage` is what the client was told, and None unless all of that was sent: the sandbox's books.
    """

    seq: int
    route: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None
    body_bytes: int
    started_s: float
    model: str = ""
    stream: bool = False
    spec: str = ""
    key_ends: str = ""
    status: int = 0
    outcome: str = "open"
    events: int = 0
    sent_bytes: int = 0
    first_byte_s: float | None = None
    ended_s: float | None = None
    gone_s: float | None = None
    usage: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; the body as text if it is UTF-8, else as base64."""
        entry = {name: getattr(self, name) for name in self.__slots__ if name != "body"}
        if self.body is not None:
            try:
                entry["body"] = self.body.decode()
            except UnicodeDecodeError:
                entry["body_base64"] = base64.b64encode(self.body).decode()
        return entry


@dataclass(slots=True)
class Counters:
    """Numbers since the start or the last reset."""

    connections: int = 0
    open_chats: int = 0
    open_streams: int = 0
    internal_errors: int = 0
    routes: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)


class Journal:
    """Thread-safe log of the last requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: deque[Record] = deque()
        self._kept_bytes = 0
        self._seq = 0
        self.counters = Counters()
        self.last_failure = ""

    def open(self, request: Request, route: str, *, keep_body: bool) -> Record:
        """Start the record of a request."""
        with self._changed:
            self._seq += 1
            record = Record(
                seq=self._seq,
                route=route,
                method=request.method,
                path=request.path,
                headers=_redacted(request),
                body=request.body if keep_body else None,
                body_bytes=len(request.body),
                started_s=time.monotonic(),
                key_ends=ending(bearer(request) or ""),
            )
            self.counters.routes[route] += 1
            self._append(record)
            self._changed.notify_all()
        return record

    def begin_chat(self, record: Record) -> int:
        """Count a chat as in progress; return the number of those, including this one."""
        with self._changed:
            self.counters.open_chats += 1
            self.counters.open_streams += record.stream
            self._changed.notify_all()
            return self.counters.open_chats

    def end_chat(self, record: Record) -> None:
        with self._changed:
            self.counters.open_chats -= 1
            self.counters.open_streams -= record.stream
            self._changed.notify_all()

    def first_byte(self, record: Record) -> None:
        with self._changed:
            record.first_byte_s = time.monotonic()
            self._changed.notify_all()

    def close(self, record: Record, outcome: str, gone_s: float | None = None) -> None:
        """End the record of a request."""
        with self._changed:
            record.outcome = outcome
            record.gone_s = gone_s
            record.ended_s = time.monotonic()
            self.counters.outcomes[outcome] += 1
            self.counters.statuses[record.status] += 1
            self._changed.notify_all()

    def connected(self) -> None:
        with self._changed:
            self.counters.connections += 1

    def failed(self, text: str) -> None:
        """Note an error of the sandbox itself; the state shows it, not stderr."""
        with self._changed:
            self.counters.internal_errors += 1
            self.last_failure = text

    def records(self) -> tuple[Record, ...]:
        with self._changed:
            return tuple(self._records)

    def reset(self) -> None:
        """Clear the log and the counters, except those of requests in progress."""
        with self._changed:
            open_chats, open_streams = self.counters.open_chats, self.counters.open_streams
            self.counters = Counters(open_chats=open_chats, open_streams=open_streams)
            self._records.clear()
            self._kept_bytes = 0
            self.last_failure = ""
            self._changed.notify_all()

    def wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `reached()` is true, checked at least every 10 ms; False after the timeout."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not reached():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                # Some changes do not notify (sent events, token counters): check again soon.
                self._changed.wait(min(left_s, 0.01))
        return True

    def state(self) -> dict[str, Any]:
        """Return counters and log as a JSON object."""
        with self._changed:
            numbers = self.counters
            return {
                "connections": numbers.connections,
                "open_chats": numbers.open_chats,
                "open_streams": numbers.open_streams,
                "internal_errors": numbers.internal_errors,
                "last_failure": self.last_failure,
                "requests": dict(numbers.routes),
                "outcomes": dict(numbers.outcomes),
                "statuses": {str(status): count for status, count in numbers.statuses.items()},
                "log": [record.as_json() for record in self._records],
            }

    def _append(self, record: Record) -> None:
        self._records.append(record)
        self._kept_bytes += len(record.body or b"")
        while len(self._records) > MAX_RECORDS:
            self._kept_bytes -= len(self._records.popleft().body or b"")
        if self._kept_bytes > MAX_BODY_BYTES:
            for old in self._records:
                self._kept_bytes -= len(old.body or b"")
                old.body = None
                if self._kept_bytes <= MAX_BODY_BYTES:
                    break


def bearer(request: Request) -> str | None:
    """Return the credential of a request, or None."""
    scheme, _, credential = (request.header("authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return None


def ending(credential: str) -> str:
    """Return the last four characters: nothing else of a credential is ever kept."""
    return credential[-4:]


def _redacted(request: Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers:
        key = name.lower()
        if key in _SECRET_HEADERS:
            value = "…" + ending(value)
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers
