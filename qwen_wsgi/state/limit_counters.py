"""What clients have taken of their limits, counted by all workers together.

One small file per client, so that no other work can lock it. Each change reads it, changes it and
writes it under a lock that the kernel frees when its holder dies. The lock is held for some
microseconds; where it is not free within a quarter of a second, as with a worker that was stopped
(SIGSTOP), and where the file cannot be used at all, this process counts on by itself from what it
knows, and adds to the file later what it has booked.

A file is one page with the state (`access.limits.State`) and its checksum, and behind it a row for
each worker that has calls of the client in flight: who it is, and what it has reserved and not
settled, so that others can give back what a dead worker holds. All room is reserved when the file
is made: a full disk refuses then, and not later. Nothing is mapped (docs/decisions/044).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import random
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final, TypeVar
from zlib import crc32

from qwen_wsgi.access import limits as arithmetic
from qwen_wsgi.access.limits import (
    ROWS,
    SPAN,
    STATE_BYTES,
    Calendar,
    Granted,
    Limits,
    Moment,
    Owed,
    Refused,
    Room,
    State,
)
from qwen_wsgi.clock import Clock, boottime, sleep
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.background import is_gone, this_worker

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a change waits for the lock, and how long after that nobody waits again. Seconds.
PATIENCE_S: Final = 0.25
_IMPATIENT_S: Final = 1.0
#: Pauses between two tries. Seconds.
_POLL_S: Final = (0.0002, 0.003)
#: How often the log is told of the same trouble. Seconds.
_TELL_S: Final = 60.0
#: How often a refusal looks for workers that have died. Seconds.
_SWEEP_S: Final = 0.5
#: Longer than the longest month: nothing in a file that was not written for so long counts.
UNUSED_S: Final = 40 * 86_400.0
#: How often the directory is searched for such files. Seconds.
_PRUNE_S: Final = 3600.0
#: Files that a worker keeps open, beyond those with calls in flight.
_MOST_OPEN: Final = 256

_CHECKSUM: Final = Struct("<I")
_PAGE: Final = 4096
_BLOCK: Final = STATE_BYTES + _CHECKSUM.size
assert _BLOCK <= _PAGE, "a write of one page is not cut by a signal"
#: Name of the worker, when it wrote (`boottime`), the latest span, the day, its open tokens of that
#: day, and those of the last `_SPANS` spans.
_SPANS: Final = 16
_NAME_BYTES: Final = 88
_ROW: Final = Struct(f"={_NAME_BYTES}sdqqq{_SPANS}q")
_ROW_BYTES: Final = 256
_FILE_BYTES: Final = _PAGE + ROWS * _ROW_BYTES
#: No row is free: the places of this worker are counted by itself alone.
_NO_ROW: Final = -1


class LimitCounters:
    """The counters of all clients. Shared by all greenlets and threads of a worker.

    Args:
        directory: created when it is needed. None counts in this process alone.
        boottime: tells how long workers were silent, also across processes.
        worker, is_gone: as in `state.background`.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock,
        calendar: Calendar,
        *,
        sleep: Callable[[float], None] = sleep,
        boottime: Callable[[], float] = boottime,
        worker: Callable[[], str] = this_worker,
        is_gone: Callable[[str, float], bool] = is_gone,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.directory = directory
        self.clock = clock
        self.sleep = sleep
        self.boottime = boottime
        self.is_gone = is_gone
        self.patience_s = patience_s
        self._calendar = calendar
        self._worker = worker
        self._name: bytes | None = None
        self._counters: dict[str, Counter] = {}
        self._told: dict[str, float] = {}
        self._pruned_s = -math.inf

    def of(self, client: str) -> Counter:
        """The counter of a client, by its id."""
        found = self._counters.get(client)
        if found is None:
            if len(self._counters) >= _MOST_OPEN:
                self._close_idle()
            found = self._counters[client] = Counter(self, client)
        return found

    @property
    def worker(self) -> bytes:
        """The name of this process, asked for when it is first needed: after the fork."""
        if self._name is None:
            self._name = self._worker().encode()
        return self._name

    def moment(self) -> Moment:
        """Now."""
        return self._calendar.moment(self.clock.monotonic(), self.clock.now())

    def look_after(self) -> None:
        """Give back what dead workers held, say that this one lives, go over to files that were
        replaced, and remove those of clients that were not seen for long. To be called every few
        seconds."""
        gone: dict[str, bool] = {}

        def ask(worker: str, silent_s: float) -> bool:
            if worker not in gone:
                gone[worker] = self.is_gone(worker, silent_s)
            return gone[worker]

        for counter in list(self._counters.values()):
            counter.look_after(ask)
        if self.directory is not None and self._is_due():
            self._prune(self.directory)

    def close(self) -> None:
        """Close all files."""
        counters, self._counters = self._counters, {}
        for counter in counters.values():
            counter.close()

    def tell(self, trouble: str) -> None:
        """Say something in the log, once a minute."""
        now_s = self.clock.monotonic()
        if now_s - self._told.get(trouble, -math.inf) >= _TELL_S:
            if len(self._told) >= _MOST_OPEN:
                self._told.clear()
            self._told[trouble] = now_s
            log.warning("%s", trouble)

    def _close_idle(self) -> None:
        """Close the file of the client that was first seen of those without a call in flight."""
        for client, counter in self._counters.items():
            if counter.is_idle:
                counter.close()
                del self._counters[client]
                return

    def _is_due(self) -> bool:
        now_s = self.clock.monotonic()
        due = now_s - self._pruned_s >= _PRUNE_S
        if due:
            self._pruned_s = now_s
        return due

    def _prune(self, directory: Path) -> None:
        """Remove the files of clients that were not seen for long."""
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if self._is_unused(entry.stat(follow_symlinks=False).st_mtime):
                        self._remove(entry.path)

    def _is_unused(self, written_at: float) -> bool:
        return self.clock.now() - written_at > UNUSED_S

    def _remove(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            # Nobody writes while it is locked, and who has it open finds out (`look_after`).
            if file_lock.take(fd) and self._is_unused(os.fstat(fd).st_mtime):
                os.unlink(path)
        finally:
            os.close(fd)


class Counter:
    """What one client has taken.

    Attributes:
        places: calls of the client that this worker has in flight.
    """

    def __init__(self, counters: LimitCounters, client: str) -> None:
        self._all = counters
        self._path: Path | None = None
        if counters.directory is not None:
            name = hashlib.sha256(b"qwen-proxy limits\0" + client.encode(errors="replace"))
            self._path = counters.directory / name.hexdigest()[:32]
        self._fd = -1
        #: A change is under way, by a thread of this process.
        self._busy = threading.Lock()
        self._state = State()
        self._owed: Owed | None = None
        #: The lock is taken, and the state that is worked at is the file's.
        self._holds = False
        self._row = _NO_ROW
        self._begun = 0
        self.places = 0
        #: Tokens that are reserved and not settled: those of span `s` at `s % _SPANS`; and those of
        #: the latest day.
        self._open = array("q", bytes(8 * _SPANS))
        self._latest_span = 0
        self._open_day = (0, 0)
        self._impatient_until_s = -math.inf
        self._swept_s = -math.inf
        if self._path is not None:
            self._open_file(self._path)

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed, without anything lost."""
        return not self.places and self._owed is None and self._fd >= 0

    # --- changes ---------------------------------------------------------------------------------

    def reserve(
        self, limits: Limits, *, requests: int = 1, tokens: int = 0, places: int = 1
    ) -> Granted | Refused:
        """Book a call, see `access.limits.reserve`."""

        def work(state: State, now: Moment) -> Granted | Refused:
            reserve = partial(
                arithmetic.reserve,
                state,
                self._for_this_worker(limits),
                now,
                requests=requests,
                tokens=tokens,
                row=self._row,
                places=places,
            )
            found = reserve()
            if isinstance(found, Refused) and self._sweep(state, self._all.is_gone):
                found = reserve()
            if isinstance(found, Granted):
                self.places += places
                self._note_open(found, tokens)
            return found

        return self._change(work)

    def count(self, requests: int) -> None:
        """Count further requests, see `access.limits.count`."""

        def work(state: State, now: Moment) -> None:
            arithmetic.count(state, now, requests)

        self._change(work)

    def settle(
        self,
        granted: Granted,
        tokens: int,
        money: int = 0,
        *,
        requests: int = 0,
        places: int = 1,
    ) -> None:
        """End a call, see `access.limits.settle`.

        Args:
            places: of the worker's, how many are given back.
        """
        self.places -= places

        def work(state: State, now: Moment) -> None:
            arithmetic.settle(state, granted, tokens, money, now, requests=requests)

        # The row first: of a worker that is killed in between, too little is given back and not
        # too much.
        self._change(work, first=partial(self._note_open, granted, -granted.tokens))

    def remaining(self, limits: Limits) -> Mapping[str, Room]:
        """What is left, see `access.limits.remaining`. Waits for nobody."""
        state = self._read() if self._fd >= 0 else None
        if state is not None:  # else it is being written, or cannot be used
            self._state = state
        return self.known_remaining(limits)

    def known_remaining(self, limits: Limits) -> Mapping[str, Room]:
        """The same as this process knows it since its latest change."""
        return arithmetic.remaining(self._state, limits, self._all.moment())

    def look_after(self, is_gone: Callable[[str, float], bool]) -> None:
        """See `LimitCounters.look_after`."""
        if self._path is None:
            return
        if self._fd < 0 or self._is_replaced(self._path):
            self._open_file(self._path)
        if self._fd < 0:
            return

        def work(state: State, now: Moment) -> None:
            arithmetic.advance(state, now)
            self._swept_s = -math.inf
            self._sweep(state, is_gone)
            if not self.places and self._holds:
                self._leave(state)

        # A client that nobody serves costs nothing, and its file gets old.
        if self.places or self._owed is not None or self._row >= 0 or any(self._state.tags):
            self._change(work)

    def close(self) -> None:
        """Leave the file; calls that are still in flight count no more."""
        if self._fd < 0:
            return
        self.places = 0

        def work(state: State, now: Moment) -> None:
            if self._holds:
                self._leave(state)

        if self._row >= 0:
            self._change(work)
        fd, self._fd = self._fd, -1
        os.close(fd)

    # --- inside ----------------------------------------------------------------------------------

    def _change(
        self, work: Callable[[State, Moment], T], *, first: Callable[[], None] | None = None
    ) -> T:
        """Have something changed: in the file, or for now in this process's copy.

        Args:
            first: changes what the worker's row says, which is written before the state then.
        """
        if self._fd >= 0 and self._take():
            self._holds = True
            try:
                return self._in_file(work, first)
            finally:
                self._holds = False
                self._free()
        if first is not None:
            first()
        return self._here(work)

    def _in_file(self, work: Callable[[State, Moment], T], first: Callable[[], None] | None) -> T:
        now = self._all.moment()
        state = self._read() or self._begun_anew()
        self._join(state, now)
        if self._owed is not None:
            owed, self._owed = self._owed, None
            arithmetic.book_owed(state, owed, now)
        if first is not None:
            first()
            with contextlib.suppress(OSError):  # the state cannot be written either
                self._write_row(now)
        result = work(state, now)
        self._set_places(state)
        self._state = state
        data = state.pack()
        try:
            os.pwrite(self._fd, data + _CHECKSUM.pack(crc32(data)), 0)
            if first is None:
                self._write_row(now)
        except OSError as error:  # of a full disk, where the file was cut
            self._give_up(state, now, error)
        return result

    def _give_up(self, state: State, now: Moment, error: OSError) -> None:
        """Count in this process alone from here on: the file cannot be written."""
        before = self._read() or State()
        arithmetic.advance(before, now)
        self._owed = arithmetic.difference(before, state)
        self._tell_unusable(error)
        fd, self._fd, self._row = self._fd, -1, _NO_ROW
        os.close(fd)  # the lock is freed, too

    def _begun_anew(self) -> State:
        """A state for a file that has none: an empty one, or of a file that was damaged what this
        process knows."""
        try:
            found = os.pread(self._fd, _BLOCK, 0)
        except OSError:
            found = b""
        if len(found) == _BLOCK and not any(found):
            return State()  # it was made just now
        self._all.tell(
            "the counters of a client's limits were damaged or cut, and begin anew"
            f" path={self._path}"
        )
        self._state.begin_anew()
        return self._state

    def _here(self, work: Callable[[State, Moment], T]) -> T:
        """Count in this process alone, from what it knew last."""
        now, state = self._all.moment(), self._state
        arithmetic.advance(state, now)
        if self._fd < 0:
            state.forget_all_workers()  # nothing is heard of the others
        self._set_places(state)
        before = state.copy()
        result = work(state, now)
        self._set_places(state)
        if self._path is not None:
            owed = arithmetic.difference(before, state)
            self._owed = owed if self._owed is None else arithmetic.together(self._owed, owed)
        return result

    def _set_places(self, state: State) -> None:
        """Set how many places this worker has, in its row, or in the only one without a file."""
        if self._row >= 0 or self._fd < 0:
            state.places[max(self._row, 0)] = self.places

    def _for_this_worker(self, limits: Limits) -> Limits:
        """The limits where the calls of this worker are in no row."""
        if self._row >= 0 or self._fd < 0 or limits.concurrency is None:
            return limits
        return limits._replace(concurrency=limits.concurrency - self.places)

    def _take(self) -> bool:
        """Take the lock, of this process's threads and of all processes; False where it is not
        free for long."""
        end_s = None
        while True:
            if self._busy.acquire(blocking=False):
                try:
                    if file_lock.take(self._fd):
                        return True
                except OSError as error:
                    self._busy.release()
                    self._tell_unusable(error)
                    return False
                except BaseException:
                    self._busy.release()
                    raise
                self._busy.release()
            now_s = time.monotonic()
            if end_s is None:
                patience_s = 0.0 if now_s < self._impatient_until_s else self._all.patience_s
                end_s = now_s + patience_s
            if now_s >= end_s:
                self._impatient_until_s = now_s + _IMPATIENT_S
                self._all.tell(
                    "the counters of a client's limits are locked by a process that does not go on;"
                    f" each other one counts by itself meanwhile path={self._path}"
                )
                return False
            shortest_s, longest_s = _POLL_S
            self._all.sleep(shortest_s + (longest_s - shortest_s) * random.random())
            if self._fd < 0:
                return False  # another thread has given it up

    def _free(self) -> None:
        try:
            if self._fd >= 0:
                file_lock.free(self._fd)
        finally:
            self._busy.release()

    def _read(self) -> State | None:
        """The state in the file; None if there is none."""
        try:
            found = os.pread(self._fd, _BLOCK, 0)
        except OSError:
            return None
        data = found[:STATE_BYTES]
        if len(found) < _BLOCK or _CHECKSUM.unpack_from(found, STATE_BYTES)[0] != crc32(data):
            return None
        return State.unpack(data)

    # --- rows ------------------------------------------------------------------------------------

    def _join(self, state: State, now: Moment) -> None:
        """Have a row of our own, also if others have freed it because this process stood still."""
        name = self._all.worker
        tag = crc32(name) or 1
        if self._row >= 0 and state.tags[self._row] == tag:
            return
        # Of a state that was begun anew nobody has given anything back.
        was_freed = self._row >= 0 and state.begun == self._begun
        self._begun = state.begun
        if tag in state.tags:
            self._row = state.tags.index(tag)
        else:
            # Who begins may take the place of one that has died.
            self._sweep(state, self._all.is_gone)
            free = 0 in state.tags and len(name) <= _NAME_BYTES
            self._row = state.tags.index(0) if free else _NO_ROW
        if self._row >= 0:
            state.tags[self._row] = tag
            state.places[self._row] = self.places
        if was_freed:
            # They have given back what we have reserved.
            open_spans = _spans_of(self._open, self._latest_span)
            arithmetic.book_owed(state, Owed.of_spans(open_spans, *self._open_day), now)

    def _leave(self, state: State) -> None:
        if self._row >= 0:
            state.places[self._row] = state.tags[self._row] = 0
            self._row = _NO_ROW

    def _write_row(self, now: Moment) -> None:
        """Write who we are and what we have open. Raises OSError."""
        if self._row < 0:
            return
        self._roll(now.at_ms // arithmetic.BUCKET_MS // SPAN)
        row = _ROW.pack(
            self._all.worker, self._all.boottime(), self._latest_span, *self._open_day, *self._open
        )
        at = _PAGE + self._row * _ROW_BYTES
        os.pwrite(self._fd, row + _CHECKSUM.pack(crc32(row)), at)

    def _note_open(self, granted: Granted, tokens: int) -> None:
        """Note that tokens are reserved, or with a negative number that they are settled."""
        if not tokens:
            return
        span = granted.bucket // SPAN
        self._roll(span)
        if span > self._latest_span - _SPANS:
            at = span % _SPANS
            self._open[at] = max(0, self._open[at] + tokens)
        day, open_tokens = self._open_day
        if granted.day >= day:
            before = open_tokens if granted.day == day else 0
            self._open_day = granted.day, max(0, before + tokens)

    def _roll(self, span: int) -> None:
        """Go on to a span: what is open of those before the window has left it."""
        if span <= self._latest_span:
            return
        for passed in range(max(self._latest_span, span - _SPANS) + 1, span + 1):
            self._open[passed % _SPANS] = 0
        self._latest_span = span

    def _sweep(self, state: State, is_gone: Callable[[str, float], bool]) -> bool:
        """Give back what dead workers held; whether there were any."""
        now_s = self._all.clock.monotonic()
        if not self._holds or abs(now_s - self._swept_s) < _SWEEP_S:
            return False
        self._swept_s = now_s
        rows = [row for row, tag in enumerate(state.tags) if tag and row != self._row]
        return any([self._sweep_row(state, row, is_gone) for row in rows])

    def _sweep_row(self, state: State, row: int, is_gone: Callable[[str, float], bool]) -> bool:
        spans: dict[int, int] = {}
        day = tokens = 0
        try:
            data = os.pread(self._fd, _ROW.size + _CHECKSUM.size, _PAGE + row * _ROW_BYTES)
        except OSError:
            data = b""
        whole = len(data) == _ROW.size + _CHECKSUM.size
        if whole and crc32(data[: _ROW.size]) == _CHECKSUM.unpack_from(data, _ROW.size)[0]:
            name, beat, latest, day, tokens, *opened = _ROW.unpack_from(data)
            name = name.rstrip(b"\0")
            silent_s = self._all.boottime() - beat
            if (crc32(name) or 1) == state.tags[row] and not is_gone(name.decode(), silent_s):
                return False
            spans = _spans_of(opened, latest)
        # Else it was cut: a worker that lives knows what is its own, and joins again.
        arithmetic.forget_worker(state, row, spans, day, tokens)
        return True

    # --- the file --------------------------------------------------------------------------------

    def _open_file(self, path: Path) -> None:
        fd = -1
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            os.posix_fallocate(fd, 0, _FILE_BYTES)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            self._tell_unusable(error)
            return
        old, self._fd, self._row = self._fd, fd, _NO_ROW
        if old >= 0:
            os.close(old)
        self._state = self._read() or State()

    def _is_replaced(self, path: Path) -> bool:
        try:
            return not os.path.samestat(os.lstat(path), os.fstat(self._fd))
        except OSError:
            return True

    def _tell_unusable(self, error: OSError) -> None:
        self._all.tell(
            "the counters of a client's limits cannot be used, so each worker counts by itself"
            f" path={self._path}: {error}"
        )


def _spans_of(opened: Sequence[int], latest: int) -> dict[int, int]:
    """The tokens of each span, of a ring."""
    spans = range(latest - _SPANS + 1, latest + 1)
    return {span: opened[span % _SPANS] for span in spans if opened[span % _SPANS]}
