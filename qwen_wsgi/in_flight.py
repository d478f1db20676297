"""The calls in flight: those of this worker, and by way of the other workers those of all.

A call costs an entry in a dict while it runs. What is told of it is read from its record when
somebody asks (`state.worker_sockets`); nothing is written down.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from qwen_wsgi.accounting.recent import WATCHED_S, Recent
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import CallCancelled
from qwen_wsgi.greenlets import CallCancelledExit, throw_into
from qwen_wsgi.state.database.calls import CallRow
from qwen_wsgi.state.worker_sockets import WorkerSocket, ask_others

#: Of a list, and of what one worker tells. The newest are told.
MOST: Final = 1000
#: Pages that watch by way of one worker.
MOST_PAGES: Final = 16
#: Of a list that is asked for each second.
MOST_WATCHED: Final = 100
#: How long workers keep what ends after `CallsInFlight.watch` has asked them. Seconds.
KEPT_S: Final = WATCHED_S
#: Characters of what clients and upstreams made up.
_LONGEST: Final = 200

#: The calls that ask this are not in it.
_OWN: Final = "/admin/v1/calls"

WAITING, QUEUED, STREAMING = "waiting", "queued", "streaming"


class OpenCall(Protocol):
    """A call while it runs; `api.lifecycle.LiveCall` is one.

    Attributes:
        serving: the greenlet that serves it.
    """

    record: CallRecord
    environ: Any
    closed: bool
    serving: Any


class Calls(NamedTuple):
    """Calls of all workers.

    Attributes:
        rows: the oldest first, in the shape of `_told`.
        has_more: there are older ones.
        workers: how many have told theirs.
        silent: how many have not, in time.
    """

    rows: list[dict[str, Any]]
    has_more: bool
    workers: int
    silent: int

    def json(self) -> dict[str, Any]:
        """As commands and `GET /admin/v1/calls` tell it."""
        return {
            "object": "list",
            "data": self.rows,
            "has_more": self.has_more,
            "workers": self.workers,
            "silent_workers": self.silent,
        }


class Counts(NamedTuple):
    """How many calls are in flight in all workers.

    Attributes:
        accounts: by account; "" of those that have none yet.
        silent: how many workers have not told theirs, in time.
    """

    accounts: Counter[str]
    silent: int


class Watched(NamedTuple):
    """What happens in all workers, for a page that is open.

    Attributes:
        calls: those in flight, the newest `MOST_WATCHED` of each worker.
        ended: those that have ended in the time that was asked about, in no order.
    """

    calls: Calls
    ended: list[CallRow]


class Cancelled(NamedTuple):
    """What became of a cancellation.

    Attributes:
        calls: how many are ended.
        silent: how many workers did not answer; the call may be in one of them.
    """

    calls: int
    silent: int


class CallsInFlight:
    """The calls of this worker, and the way to those of the others.

    Args:
        state_dir: where workers find each other; None: there are no others.
        address_of: the address of a caller, by its WSGI environment.
        throw: as `greenlets.throw_into`.
        recent: the calls of this worker that have ended lately; None tells none.
    """

    def __init__(
        self,
        clock: Clock,
        state_dir: Path | None,
        *,
        address_of: Callable[[Mapping[str, Any]], str],
        throw: Callable[[Any, Callable[[], CallCancelled | None]], None] = throw_into,
        recent: Recent | None = None,
    ) -> None:
        self._recent = recent
        self._watching = 0
        self._clock = clock
        self._state_dir = state_dir
        self._address_of = address_of
        self._throw = throw
        self._calls: dict[int, OpenCall] = {}
        self.socket = WorkerSocket(state_dir, self._answer)

    def begin(self, call: OpenCall) -> None:
        """A call is under way. Harmless when repeated."""
        self._calls[id(call)] = call

    def end(self, call: OpenCall) -> None:
        """It has ended. Harmless when repeated."""
        self._calls.pop(id(call), None)

    # --- all workers -------------------------------------------------------------------------

    def all(self, limit: int = MOST) -> Calls:
        """The calls of all workers, at most the newest so many."""
        others = asked_calls(self._state_dir, limit)
        rows = [*others.rows, *self._rows()]
        return _newest(rows, limit, others._replace(workers=others.workers + 1))

    def counts(self) -> Counts:
        """How many calls there are in all workers, however many."""
        asked = ask_others(self._state_dir, {"count": True})
        found = self._counts()
        for each in asked.answers:
            if isinstance(each, dict) and "counts" in each:
                found.update(each["counts"])
        return Counts(found, asked.silent)

    def watch(self, since: float, until: float) -> Watched:
        """What happens in all workers. Asked again and again, each time for the time since the
        last question, it tells each ended call once.

        Args:
            since, until: monotonic seconds, the same in all processes.
        """
        asked = ask_others(self._state_dir, {"watch": [since, until]})
        told = [each for each in asked.answers if isinstance(each, dict) and "ended" in each]
        told.append(self._watched(since, until))
        rows = sorted((row for each in told for row in each["calls"]), key=_started_at)
        more = any(each.get("more") for each in told)
        ended = [CallRow(*row) for each in told for row in each["ended"]]
        return Watched(Calls(rows, more, len(told), asked.silent), ended)

    def begin_watch(self) -> bool:
        """Take a place for a page that watches; False if there is none in this worker."""
        if self._watching >= MOST_PAGES:
            return False
        self._watching += 1
        return True

    def end_watch(self) -> None:
        """Give the place back."""
        self._watching -= 1

    def cancel(self, request_id: str, by: str) -> Cancelled:
        """End the calls with an id, in whichever worker they run.

        Args:
            by: who wants it, for the client: the name of a key.
        """
        others = cancel_in_workers(self._state_dir, request_id, by)
        return others._replace(calls=others.calls + self._cancel(request_id, by))

    # --- this worker -------------------------------------------------------------------------

    def _answer(self, question: Mapping[str, Any]) -> Any:
        """Answer another process."""
        if (id := question.get("cancel")) is not None:
            return {"cancelled": self._cancel(str(id), str(question.get("by", "")))}
        if (watched := question.get("watch")) is not None:
            return self._watched(*watched)
        if question.get("count") is not None:
            return {"counts": self._counts()}
        rows = self._rows()
        return {"calls": rows[-MOST:], "more": len(rows) > MOST}

    def _watched(self, since: float, until: float) -> dict[str, Any]:
        rows = self._rows(MOST_WATCHED + 1)
        ended = [] if self._recent is None else self._recent.between(since, until)
        return {
            "calls": rows[-MOST_WATCHED:],
            "more": len(rows) > MOST_WATCHED,
            "ended": ended,
        }

    def _rows(self, newest: int | None = None) -> list[dict[str, Any]]:
        wall, monotonic, pid = self._clock.now(), self._clock.monotonic(), os.getpid()
        calls = self._open()
        if newest is not None:
            calls = calls[-newest:]  # they are in the order in which they began
        return sorted((self._told(call, wall, monotonic, pid) for call in calls), key=_started_at)

    def _counts(self) -> Counter[str]:
        return Counter(_asked(call.record).account[:_LONGEST] for call in self._open())

    def _open(self) -> list[OpenCall]:
        """Those that are not at their end."""
        return [
            call
            for call in list(self._calls.values())
            if not (call.closed or call.record.is_written or call.record.endpoint.startswith(_OWN))
        ]

    def _told(self, call: OpenCall, wall: float, monotonic: float, pid: int) -> dict[str, Any]:
        """What is told of one call; documented in docs/keys.md."""
        record = call.record
        parts, asked = _parts(record), _asked(record)
        firsts = [part.first_byte_at for part in parts if part.first_byte_at is not None]
        seconds = monotonic - record.started_at
        state = STREAMING if firsts else WAITING
        if not firsts and all(part.is_queued for part in parts):
            state = QUEUED
        return {
            "object": "call",
            "id": record.request_id,
            "client": record.client[:_LONGEST],
            "client_id": record.client_id[:_LONGEST],
            "address": self._address_of(call.environ)[:_LONGEST],
            "method": record.method,
            "endpoint": record.endpoint,
            "stream": record.stream,
            "account": asked.account[:_LONGEST] or None,
            "model": record.model[:_LONGEST] or None,
            "upstream_model": asked.upstream_model[:_LONGEST] or None,
            "state": state,
            "started_at": round(wall - seconds, 3),
            "seconds": round(seconds, 3),
            "seconds_to_first_byte": round(min(firsts) - record.started_at, 3) if firsts else None,
            "received_bytes": sum(part.received_bytes for part in parts),
            "streamed_tokens": sum(part.streamed_tokens for part in parts),
            "seconds_queued": round(max(part.queued_s for part in parts), 3),
            "seconds_connecting": round(asked.connect_s, 3),
            "longest_gap": round(max(part.longest_gap_s for part in parts), 3),
            "gaps": [
                {"after": round(begin - record.started_at, 3), "seconds": round(seconds, 3)}
                for begin, seconds in asked.gaps
            ],
            "attempts": sum(part.attempts for part in parts),
            "worker": pid,
        }

    def _cancel(self, request_id: str, by: str) -> int:
        """End those of this worker; how many there are."""
        found = [call for call in self._open() if call.record.request_id == request_id]
        for call in found:

            def error(call: OpenCall = call) -> CallCancelled | None:
                # Asked when the call's greenlet is about to be woken: it may serve another by now.
                if call.closed or call.record.is_written:
                    return None
                call.record.is_cancelled = True
                return CallCancelledExit(by)

            self._throw(call.serving, error)
        return len(found)


def _parts(record: CallRecord) -> tuple[CallRecord, ...]:
    """What is told of a call: one that is split has told its parts, and itself nothing yet."""
    return record.parts or (record,)


def _asked(record: CallRecord) -> CallRecord:
    """The part of a call that has an account."""
    return next((part for part in _parts(record) if part.account), record)


def asked_calls(state_dir: Path | None, limit: int = MOST) -> Calls:
    """The calls of all workers but this process; for commands, of all."""
    asked = ask_others(state_dir, {"calls": True})
    answers = [each for each in asked.answers if isinstance(each, dict) and "calls" in each]
    rows = [row for each in answers for row in each["calls"]]
    more = any(each.get("more") for each in answers)
    return _newest(rows, limit, Calls([], more, len(answers), asked.silent))


def cancel_in_workers(state_dir: Path | None, request_id: str, by: str) -> Cancelled:
    """As `CallsInFlight.cancel`, in all workers but this process."""
    asked = ask_others(state_dir, {"cancel": request_id, "by": by})
    answers = [each for each in asked.answers if isinstance(each, dict)]
    return Cancelled(sum(each.get("cancelled", 0) for each in answers), asked.silent)


def _newest(rows: list[dict[str, Any]], limit: int, found: Calls) -> Calls:
    rows = sorted(rows, key=_started_at)
    return found._replace(rows=rows[-limit:], has_more=found.has_more or len(rows) > limit)


def _started_at(row: Mapping[str, Any]) -> float:
    at: float = row["started_at"]
    return at
