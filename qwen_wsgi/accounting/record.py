"""The facts of one call, in one value that every stage of the call writes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from qwen_wsgi.errors import (
    ApiError,
    CallCancelled,
    Cancelled,
    ClientGone,
    InternalError,
    UpstreamError,
    forget_frames,
)
from qwen_wsgi.protocol.usage import Usage

#: Of `CallRecord.cache`.
HIT: Final = "hit"
MISS: Final = "miss"

#: Silences of an upstream that are worth a place in a call's timeline: from so many seconds on, and
#: the longest ones of them.
GAP_S: Final = 0.2
MOST_GAPS: Final = 5

#: Bytes of an answer's text that are about one token.
_TOKEN_BYTES: Final = 4


class CallBudget(Protocol):
    """What the call takes of its client's limits; `access.budget.Budget` is one."""

    def reserve(self, calls: int = 1) -> None:
        """Reserve for upstream requests. Raises LimitReached."""

    def sent(self, calls: int = 1) -> None:
        """Note that upstream requests are sent."""

    def unsent(self) -> None:
        """Note that one of them did not reach an upstream."""

    def streamed(self, events: bytes, count: int) -> None:
        """Note what a stream has brought: so many whole events."""


_NOTHING: Final = Usage(prompt=0, completion=0, total=0)


@dataclass(slots=True)  # more attributes than a dict of an instance shares: it would grow thrice
class CallRecord:
    """One client request, from its arrival to its end. Times are monotonic seconds.

    Attributes:
        client: the client's name for logs: `key…abcd` or `local`.
        client_id: tells clients apart: see `access.guard.Client.id`.
        address: of a caller that was refused; else "".
        account: the name of the account that was asked last, or "".
        model: the model as the client named it.
        upstream_model: the model's name at the account that was asked last, or "".
        attempts: upstream requests that were begun; the repetition after a refreshed login is not
            counted.
        requests: by account, how many of them have reached it, as far as that is known.
        failures: those of them that failed, each with the name of its account and its cause, a
            stable word.
        queued_s: time in queues and pauses.
        connect_s: time to set up the last connection; 0.0 for one that was kept alive.
        first_byte_at: when the upstream's first event arrived, or None.
        longest_gap_s: the longest silence of the upstream after that.
        gaps: the longest silences of at least `GAP_S`, each with its beginning, in their order.
        least_gap_s: longer ones belong to `gaps`.
        changed: what was changed of the request for the account that was asked last, as entries of
            the header `x-qwen-proxy-changed`.
        outcome: `complete`, `refused` (by us), `upstream_error`, `client_gone`,
            `cancelled` (by an admin), `cut_by_stop`, `failed` (a fault of ours), or `open`.
        usage: as the upstream reported it; None is "unknown", never an estimate.
        units: what was made or read besides tokens, by name, for the log: `("documents", 12)`.
        tools: how often the proxy has run which tool for it, by names such as `time.now`.
        cause: why an upstream failed that ended the call: a stable word, of
            `upstream.failures.causes`, or "".
        keepalives: those that were sent to the client.
        budget: where upstream requests are counted; None if the client has no limits, or if they
            do not count.
        endpoint: the path of its route: `/v1/responses/{id}`; `unknown` where there is none.
        half_price: the account that was asked last is Batch Chat.
        quiet: not worth a log line at INFO, nor a row in the ledger: health checks and the landing
            page.
        is_written: the ledger has it.
        is_queued: it waits for a slot of an account, or for the end of a pause.
        received_bytes: of streams of upstreams, so far.
        received_events: the events in them, whole ones. `like_events` are those after the first
            read, whose frames are alike; `like_bytes` are theirs, `shortest_event` those of the
            shortest one.
        parts: the records of the upstream calls that it is split into.
        is_cancelled: an admin ends it.
        cache: HIT: the response cache has answered; MISS: it could not; "": it does not apply.
    """

    request_id: str = ""
    client: str = "-"
    client_id: str = ""
    address: str = ""
    method: str = ""
    path: str = ""
    started_at: float = 0.0
    account: str = ""
    model: str = ""
    upstream_model: str = ""
    stream: bool = False
    status: int = 0
    attempts: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    failures: tuple[tuple[str, str], ...] = ()
    queued_s: float = 0.0
    connect_s: float = 0.0
    first_byte_at: float | None = None
    longest_gap_s: float = 0.0
    gaps: tuple[tuple[float, float], ...] = ()
    least_gap_s: float = GAP_S
    ended_at: float | None = None
    changed: tuple[str, ...] = ()
    usage: Usage | None = None
    units: tuple[tuple[str, float], ...] = ()
    tools: dict[str, int] = field(default_factory=dict)
    outcome: str = "open"
    error_code: str = ""
    cause: str = ""
    keepalives: int = 0
    upstream_request_id: str = ""
    quiet: bool = False
    budget: CallBudget | None = None
    endpoint: str = "unknown"
    half_price: bool = False
    is_written: bool = False
    is_queued: bool = False
    received_bytes: int = 0
    received_events: int = 0
    like_events: int = 0
    like_bytes: int = 0
    shortest_event: int = 0
    parts: tuple[CallRecord, ...] = ()
    is_cancelled: bool = False
    cache: str = ""

    @property
    def completion_id(self) -> str:
        """The id of the answer where the upstream gives none, and of chunks that come before it."""
        return "chatcmpl-" + self.request_id

    def note_events(self, events: bytes, count: int) -> None:
        """Note what a stream has brought: so many whole events."""
        self.received_events += count
        if self.received_events == count:
            return  # the first event has another frame, as it tells the role
        self.like_events += count
        self.like_bytes += len(events)
        if (length := len(events) // count) < self.shortest_event or not self.shortest_event:
            self.shortest_event = length

    def note_gap(self, begin: float, seconds: float) -> None:
        """Note a silence that is longer than `least_gap_s`."""
        gaps = [*self.gaps, (begin, seconds)]
        if len(gaps) > MOST_GAPS:
            gaps.remove(min(gaps, key=_length))
        if len(gaps) == MOST_GAPS:
            self.least_gap_s = min(map(_length, gaps))
        self.gaps = tuple(gaps)

    @property
    def streamed_tokens(self) -> int:
        """An estimate of what was streamed: an event has a token or more, and the events of a
        stream are alike but for their texts."""
        beyond = self.like_bytes - self.like_events * self.shortest_event
        return self.received_events + beyond // _TOKEN_BYTES

    def fail(self, error: BaseException) -> None:
        """Record why the call failed."""
        if isinstance(error, ApiError):
            if isinstance(error, UpstreamError):
                self.outcome = "upstream_error"
                self.upstream_request_id = error.upstream_request_id or self.upstream_request_id
            elif isinstance(error, Cancelled):
                self.outcome = "cancelled"
            else:
                self.outcome = "failed" if isinstance(error, InternalError) else "refused"
            self.note(error)
            self.status = error.status
        elif isinstance(error, ClientGone | GeneratorExit):
            forget_frames(error)  # one of Flask's frames holds it
            self.outcome = "open"
            self.leave()
            self.status = self.status or 499
        elif isinstance(error, CallCancelled):
            forget_frames(error)
            self.fail(error.error)
        else:
            self.outcome = "failed"
            self.status = 500

    def leave(self) -> None:
        """Note that nobody takes the answer any more, unless the call has ended."""
        if self.outcome == "open":
            self.outcome = "cancelled" if self.is_cancelled else "client_gone"

    def note(self, error: ApiError) -> None:
        """Record the code and the cause of a failure."""
        self.error_code = error.code or error.type
        failure = error.failure if isinstance(error, UpstreamError) else None
        self.cause = "" if failure is None else failure.cause

    def end(self, at: float) -> None:
        """Close the record; a call that nothing else has ended is complete."""
        self.ended_at = at
        if self.outcome == "open":
            self.outcome = "complete"
        if self.cache == HIT:  # what the client is told was used before, and is counted there
            self.usage, self.units, self.first_byte_at = _NOTHING, (), None

    def count_request(self, account: str, count: int = 1) -> None:
        """Count a request to an account, or with -1 take back one that did not reach it."""
        self.requests[account] = self.requests.get(account, 0) + count

    def add_requests(self, others: Iterable[CallRecord]) -> None:
        """Count the requests of parts of this call."""
        for other in others:
            for account, count in other.requests.items():
                self.count_request(account, count)

    def count_tools(self, runs: Mapping[str, int]) -> None:
        """Count runs of tools."""
        for name, count in runs.items():
            self.tools[name] = self.tools.get(name, 0) + count

    def part(self) -> CallRecord:
        """A record for one of the upstream calls that this call is split into (see `join`)."""
        part = CallRecord(
            request_id=self.request_id,
            client=self.client,
            client_id=self.client_id,
            model=self.model,
            started_at=self.started_at,
            budget=self.budget,
        )
        self.parts += (part,)
        return part

    def join(self, parts: Sequence[CallRecord], *, complete: int) -> None:
        """Add up the parts of a split call.

        The account is that of the part that failed, or of the first part when all succeeded.

        Args:
            complete: how many parts succeeded, in their order.
        """
        decisive = parts[complete % len(parts)]
        if not decisive.account:
            decisive = next((part for part in parts if part.account), decisive)
        self.account, self.upstream_model = decisive.account, decisive.upstream_model
        self.changed, self.half_price = decisive.changed, decisive.half_price
        self.upstream_request_id = decisive.upstream_request_id
        self.connect_s, self.first_byte_at = decisive.connect_s, decisive.first_byte_at
        self.attempts = sum(part.attempts for part in parts)
        self.add_requests(parts)
        self.failures = tuple(failure for part in parts for failure in part.failures)
        self.queued_s = max(part.queued_s for part in parts)


def _length(gap: tuple[float, float]) -> float:
    return gap[1]
