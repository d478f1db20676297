"""What one client has taken of its limits, counted by all workers together.

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

import functools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from struct import Struct
from typing import Final, TypeAlias
from zlib import crc32

from qwen_wsgi.access import limits as arithmetic
from qwen_wsgi.access.limits import (
    ROWS,
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
from qwen_wsgi.clock import Clock
from qwen_wsgi.state import file_lock
from qwen_wsgi.state.limits import rows
from qwen_wsgi.state.limits.rows import NAME_BYTES, ROW_BYTES, Open

log = logging.getLogger(__name__)

#: A state that is being changed, now, and what it was before where it is only this process's copy;
#: None where it is the file's, whose lock is taken.
_Change: TypeAlias = tuple[State, Moment, State | None]

#: How long a change waits for the lock, and how long after that nobody waits again. Seconds.
PATIENCE_S: Final = 0.25
_IMPATIENT_S: Final = 1.0
#: How long a round of `look_after` waits for it: many clients' locks may be held. Seconds.
_GLANCE_S: Final = 0.01
#: Pauses between two tries. Seconds.
_POLL_S: Final = (0.0002, 0.003)
#: How often the log is told of the same trouble (seconds), and how many are remembered.
_TELL_S: Final = 60.0
_MOST_TOLD: Final = 256
#: How often a refusal looks for workers that have died. Seconds.
_SWEEP_S: Final = 0.5

_CHECKSUM: Final = Struct("<I")
_PAGE: Final = 4096
_BLOCK: Final = STATE_BYTES + _CHECKSUM.size
assert _BLOCK <= _PAGE, "a write of one page is not cut by a signal"
_FILE_BYTES: Final = _PAGE + ROWS * ROW_BYTES
#: No row is free: the places of this worker are counted by itself alone.
_NO_ROW: Final = -1


class Common:
    """What the counters of all clients share in this process.

    Args: as of `counters.LimitCounters`.
    """

    def __init__(
        self,
        clock: Clock,
        calendar: Calendar,
        *,
        sleep: Callable[[float], None],
        boottime: Callable[[], float],
        name: Callable[[], str],
        is_gone: Callable[[str, float], bool],
        patience_s: float,
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self.boottime = boottime
        self.is_gone = is_gone
        self.patience_s = patience_s
        self.calendar = calendar
        self._name = name
        self._told: dict[str, float] = {}

    @functools.cached_property
    def worker(self) -> bytes:
        """The name of this process, asked for when it is first needed: after the fork."""
        return self._name().encode()

    @functools.cached_property
    def tag(self) -> int:
        """What stands for this process in a state."""
        return _tag_of(self.worker)

    def tell(self, trouble: str) -> None:
        """Say something in the log, once a minute."""
        now_s = self.clock.monotonic()
        if now_s - self._told.get(trouble, -math.inf) >= _TELL_S:
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            self._told[trouble] = now_s
            log.warning("%s", trouble)


class Counter:
    """What one client has taken.

    Attributes:
        places: calls of the client that this worker has in flight.
    """

    __slots__ = (
        *("_all", "_begun", "_clock", "_fd", "_impatient_until_s", "_moment", "_open", "_owed"),
        *("_path", "_row", "_state", "_swept_s", "_turn", "_written", "places"),
    )

    def __init__(self, common: Common, path: Path | None) -> None:
        self._all = common
        self._clock, self._moment = common.clock, common.calendar.moment
        self._path = path
        self._fd = -1
        #: Empty while a change is under way, by a thread of this process. Nobody waits for it, and
        #: gevent's locks are functions of Python.
        self._turn = [True]
        self._state = State()
        #: What is in the file if nobody else has written since, which `_state` was made of or is.
        self._written = b""
        self._owed: Owed | None = None
        self._row = _NO_ROW
        self._begun = 0
        self.places = 0
        self._open = Open()
        self._impatient_until_s = -math.inf
        self._swept_s = -math.inf
        if path is not None:
            self._open_file(path)

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed, without anything lost."""
        return not self.places and self._owed is None and self._fd >= 0

    # --- changes ---------------------------------------------------------------------------------

    def reserve(
        self, limits: Limits, *, requests: int = 1, tokens: int = 0, places: int = 1
    ) -> Granted | Refused:
        """Book a call, see `access.limits.reserve`."""
        state, now, before = self._begin()
        try:
            while True:
                found = arithmetic.reserve(
                    state,
                    limits if self._row >= 0 else self._without_row(limits),
                    now,
                    requests=requests,
                    tokens=tokens,
                    row=self._row,
                    places=places,
                )
                if isinstance(found, Granted):
                    self.places += places
                    self._open.note(found, tokens)
                    break
                if before is not None or not self._sweep(state, self._all.is_gone):
                    break
            self._write(state, now, before)
            return found
        finally:
            self._end(before)

    def count(self, requests: int) -> None:
        """Count further requests, see `access.limits.count`."""
        state, now, before = self._begin()
        try:
            arithmetic.count(state, now, requests)
            self._write(state, now, before)
        finally:
            self._end(before)

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
        state, now, before = self._begin()
        try:
            self._open.note(granted, -granted.tokens)
            arithmetic.settle(state, granted, tokens, money, now, requests=requests)
            # Of a worker that is killed in between, too little is given back and not too much.
            self._write(state, now, before, row_first=True)
        finally:
            self._end(before)

    def raise_to(self, day: int, tokens: int, month: int, money: int) -> None:
        """Count at least so much, see `access.limits.raise_to`."""
        state, now, before = self._begin()
        try:
            arithmetic.raise_to(state, now, day=day, tokens=tokens, month=month, money=money)
            self._write(state, now, before)
        finally:
            self._end(before)

    def remaining(self, limits: Limits) -> Mapping[str, Room]:
        """What is left, see `access.limits.remaining`. Waits for nobody."""
        if self._fd >= 0 and self._owed is None:  # else this process knows more than the file
            # None while it is being written.
            self._state = self._read() or self._state
        return self.known_remaining(limits)

    def known_remaining(self, limits: Limits) -> Mapping[str, Room]:
        """The same as this process knows it since its latest change."""
        now = self._moment(self._clock.monotonic(), self._clock.now())
        return arithmetic.remaining(self._state, limits, now)

    def look_after(self, is_gone: Callable[[str, float], bool]) -> None:
        """See `counters.LimitCounters.look_after`."""
        if self._path is None:
            return
        if self._fd < 0 or self._is_replaced(self._path):
            self._open_file(self._path)
        if self._fd < 0:
            return

        # A client that nobody serves costs nothing, and its file gets old.
        concerned = self.places or self._owed is not None or self._row >= 0
        if not (concerned or any(self._state.tags)) or not self._take(_GLANCE_S):
            return
        state, now, before = self._begin(is_locked=True)
        try:
            arithmetic.advance(state, now)
            self._swept_s = -math.inf
            self._sweep(state, is_gone)
            if not self.places:
                self._leave(state)
            self._write(state, now, before)
        finally:
            self._end(before)

    def close(self) -> None:
        """Leave the file; calls that are still in flight count no more."""
        if self._fd < 0:
            return
        self.places = 0
        if self._row >= 0:
            state, now, before = self._begin()
            try:
                if before is None:
                    self._leave(state)
                self._write(state, now, before)
            finally:
                self._end(before)
        fd, self._fd = self._fd, -1
        os.close(fd)

    # --- inside ----------------------------------------------------------------------------------

    def _begin(self, *, is_locked: bool = False) -> _Change:
        """Begin a change. `_write` keeps what was changed, and `_end` must follow in any case.

        Args:
            is_locked: the lock was taken.
        """
        if not is_locked and (self._fd < 0 or not self._take()):
            return self._without_file()
        try:
            now = self._moment(self._clock.monotonic(), self._clock.now())
            state = self._read() or self._begun_anew()
            self._written = b""  # until it is
            if self._row < 0 or state.tags[self._row] != self._all.tag:
                self._join(state, now)
            if self._owed is not None:
                owed, self._owed = self._owed, None
                arithmetic.book_owed(state, owed, now)
        except BaseException:
            self._end(None)
            raise
        return state, now, None

    def _without_file(self) -> _Change:
        """Begin a change of this process's copy of the state."""
        now = self._moment(self._clock.monotonic(), self._clock.now())
        state, self._written = self._state, b""
        arithmetic.advance(state, now)
        if self._fd < 0:
            state.forget_all_workers()  # nothing is heard of the others
        if self._row >= 0 or self._fd < 0:
            state.places[max(self._row, 0)] = self.places
        return state, now, state.copy()

    def _write(
        self, state: State, now: Moment, before: State | None, *, row_first: bool = False
    ) -> None:
        """Keep a state that was changed.

        Args:
            row_first: what the worker's row says is written before the state.
        """
        if self._row >= 0 or self._fd < 0:  # without a file the only one
            state.places[max(self._row, 0)] = self.places
        if before is not None:
            self._owe(arithmetic.difference(before, state))
            return
        self._state = state
        data = b"".join(state.arrays)
        data += _CHECKSUM.pack(crc32(data))
        row, place = b"", _PAGE + self._row * ROW_BYTES
        if self._row >= 0:
            row = self._open.packed(self._all.worker, self._all.boottime(), now)
        try:
            if row and row_first:
                os.pwrite(self._fd, row, place)
            os.pwrite(self._fd, data, 0)
            self._written = data
            if row and not row_first:
                os.pwrite(self._fd, row, place)
        except OSError as error:  # of a full disk, where the file was cut
            self._give_up(state, now, error)

    def _owe(self, owed: Owed) -> None:
        """Remember what is to be added to the file."""
        if self._path is not None:
            self._owed = owed if self._owed is None else arithmetic.together(self._owed, owed)

    def _end(self, before: State | None) -> None:
        """Let others go on after a change."""
        if before is None:
            try:
                if self._fd >= 0:
                    file_lock.change(self._fd, file_lock.FREE)
            finally:
                self._turn.append(True)

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

    def _without_row(self, limits: Limits) -> Limits:
        """The limits where the calls of this worker are in no row."""
        if self._fd < 0 or limits.concurrency is None:
            return limits
        return limits._replace(concurrency=limits.concurrency - self.places)

    def _take(self, patience_s: float | None = None) -> bool:
        """Take the lock, of this process's threads and of all processes.

        Args:
            patience_s: how long to wait for it; None waits for as long as a call may, unless one
                has done so in vain a moment ago, and tells the log if that is in vain.

        Returns:
            False where it is not free for so long.
        """
        end_s = None
        while True:
            taken = False
            try:
                self._turn.pop()
            except IndexError:
                pass  # of another thread
            else:
                try:
                    taken = file_lock.take(self._fd)
                except OSError as error:
                    self._tell_unusable(error)
                    return False
                finally:
                    if not taken:
                        self._turn.append(True)
            if taken:
                return True
            now_s = time.monotonic()
            if end_s is None:
                wait_s = 0.0 if now_s < self._impatient_until_s else self._all.patience_s
                end_s = now_s + (wait_s if patience_s is None else patience_s)
            if now_s >= end_s and patience_s is not None:
                return False
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

    def _read(self) -> State | None:
        """The state in the file; None if there is none."""
        try:
            found = os.pread(self._fd, _BLOCK, 0)
        except OSError:
            return None
        if found == self._written:
            return self._state
        self._written = b""
        data = found[:STATE_BYTES]
        if len(found) < _BLOCK or _CHECKSUM.unpack_from(found, STATE_BYTES)[0] != crc32(data):
            return None
        return State.unpack(data)

    # --- rows ------------------------------------------------------------------------------------

    def _join(self, state: State, now: Moment) -> None:
        """Have a row of our own, also if others have freed it because this process stood still."""
        name, tag = self._all.worker, self._all.tag
        # Of a state that was begun anew nobody has given anything back.
        was_freed = self._row >= 0 and state.begun == self._begun
        self._begun = state.begun
        if tag in state.tags:
            self._row = state.tags.index(tag)
        else:
            # Who begins may take the place of one that has died.
            self._sweep(state, self._all.is_gone)
            free = 0 in state.tags and len(name) <= NAME_BYTES
            self._row = state.tags.index(0) if free else _NO_ROW
        if self._row >= 0:
            state.tags[self._row] = tag
            state.places[self._row] = self.places
        if was_freed:
            # They have given back what we have reserved.
            arithmetic.book_owed(state, self._open.owed(), now)

    def _leave(self, state: State) -> None:
        if self._row >= 0:
            state.places[self._row] = state.tags[self._row] = 0
            self._row = _NO_ROW

    def _sweep(self, state: State, is_gone: Callable[[str, float], bool]) -> bool:
        """Give back what dead workers held; whether there were any."""
        now_s = self._all.clock.monotonic()
        if abs(now_s - self._swept_s) < _SWEEP_S:
            return False
        self._swept_s = now_s
        rows = [row for row, tag in enumerate(state.tags) if tag and row != self._row]
        return any([self._sweep_row(state, row, is_gone) for row in rows])

    def _sweep_row(self, state: State, row: int, is_gone: Callable[[str, float], bool]) -> bool:
        try:
            found = rows.read(os.pread(self._fd, rows.WRITTEN_BYTES, _PAGE + row * ROW_BYTES))
        except OSError:
            found = None
        if found is None:
            # It was cut: a worker that lives knows what is its own, and joins again.
            arithmetic.forget_worker(state, row, {}, 0, 0)
            return True
        if _tag_of(found.worker) == state.tags[row] and not is_gone(
            found.worker.decode(), self._all.boottime() - found.at
        ):
            return False
        arithmetic.forget_worker(state, row, found.spans, found.day, found.tokens)
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


def _tag_of(worker: bytes) -> int:
    """What stands for a worker's name in the state; never 0."""
    return crc32(worker) or 1
