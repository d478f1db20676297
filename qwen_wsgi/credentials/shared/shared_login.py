"""Keeps one login in step with the other boxes, and asks whether this box may renew it.

The files on this box stay what calls use: what the others know is brought into the journal, and
from there into qwen-code's file by the next attempt. So no call waits for Redis, and whatever
happens to it, this box has on its disk what it last knew.

Locks, always in this order: ours beside the login's files, qwen-code's, then the login's custody
lock in the state directory. A custody that is given away, and a token that is sent, exclude each
other by the last one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.journal import Journal, Received, fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore, Snapshot, render
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.shared import agreement, custody, record
from qwen_wsgi.credentials.shared.agreement import Local, Verdict
from qwen_wsgi.credentials.shared.board import Board, BoardAway, Seen, Unsealed
from qwen_wsgi.credentials.shared.custody import Custody, CustodyFile, Silence, Step
from qwen_wsgi.credentials.shared.record import Record

log = logging.getLogger(__name__)

#: How long a change waits for a lock that another process holds; the next look repeats it.
_LOCK_S: Final = 2.0
#: Rounds of one look: each write may find that another box was faster.
_ROUNDS: Final = 4
_DONE: Final = (Verdict.SAME, Verdict.NOTHING)


class _View(NamedTuple):
    """One look, with the record of that version."""

    seen: Seen
    shared: Record | None


_NOTHING: Final = _View(Seen(0, None, "", None, "", "", ""), None)


@dataclass(frozen=True)
class SharingTiming:
    """Times in seconds; see `custody`. Tests scale them."""

    lease_s: float = custody.LEASE_S
    settle_s: float = custody.SETTLE_S
    #: How long a call's attempt waits for the box that renews, and how often it looks.
    ask_s: float = 15.0
    ask_every_s: float = 0.5


class SharedLogin:
    """One login of this box, and what it has to do with the other boxes; for all greenlets of a
    process.

    Args:
        name: the login's name among the boxes.
        directory: of this box's state; custody and its lock are kept there.
        own_file: the login's file is qwen-code's. While it is there, this box keeps the right to
            renew, once it has it, without Redis.
        copy: the login's file is our copy of another box's: only we write it.
    """

    def __init__(
        self,
        name: str,
        store: LoginStore,
        board: Board,
        directory: Path,
        clock: Clock,
        *,
        own_file: bool,
        copy: bool,
        sleep: Callable[[float], None],
        timing: SharingTiming | None = None,
    ) -> None:
        self.name = name
        self.board = board
        self.timing = timing or SharingTiming()
        #: Why nothing could be exchanged with the other boxes at the last look; "" if it could.
        self.problem = ""
        self._own_file = own_file
        self._copy = copy
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._file = CustodyFile(directory / f"custody_{name}.json")
        self._lock = ProxyLock(directory / f"custody_{name}.lock")
        self._one = threading.Lock()
        self._silence = Silence()
        self._view = _NOTHING
        self._blocked = ""
        self._told = ""

    @property
    def keeper(self) -> bool:
        """Whether this box has qwen-code's file, and so keeps the right to renew."""
        return self._own_file and self._store.identity() is not None

    # --- what there is ---------------------------------------------------------------------------

    def custody(self) -> Custody:
        """What this box knows of the right to renew the login."""
        return self._file.read()

    def may_try(self) -> bool:
        """Whether an attempt of this box has a chance: it has the right to renew, as far as it
        knows; checked again right before the token is sent."""
        known = self.custody()
        if not known.mine or self._blocked:
            return False
        return known.keeps or not self.board.away

    def describe(self) -> str:
        """How the login is shared, as a clause for people: who renews it, and what is wrong."""
        known, away = self.custody(), self.board.away or self.problem
        if known.mine:
            whose = "this box renews it"
            if away and not known.keeps:
                whose = "this box renews it when Redis is back"
        elif known.box:
            whose = f"box {known.box} renews it"
            if self._blocked:
                whose = self._blocked
        else:
            whose = "no box is known to renew it yet"
        return f"{whose} ({away})" if away else whose

    @property
    def state(self) -> str:
        """Whether it is in step with the other boxes, in a stable word."""
        if self.board.away:
            return "redis_away"
        return "not_in_step" if self.problem else "in_step"

    def wanted(self, access_token: str) -> bool:
        """Whether another box wants this very access token replaced, as of the last look."""
        return self._view.seen.wanted == fingerprint(access_token)

    # --- in step ---------------------------------------------------------------------------------

    def sync(self, *, wanted: str = "") -> bool:
        """Exchange what is new with the other boxes; never raises for what can go wrong outside.

        Args:
            wanted: an access token that is to be replaced.

        Returns:
            Whether there was contact.
        """
        if not self._one.acquire(blocking=False):
            return not self.problem  # another greenlet is at it
        try:
            self._exchange(wanted)
        except BoardAway as error:
            self._tell(str(error))
            return False
        except (OSError, Unusable, Unsealed) as error:
            self._tell(f"it cannot be brought in step: {error}")
            return False
        finally:
            self._one.release()
        return True

    def _exchange(self, wanted: str) -> None:
        in_step = False
        for _ in range(_ROUNDS):
            view = self._look(wanted)
            if view.seen.problem:
                self._tell(view.seen.problem)
                return
            local = self._local(self._store.snapshot())
            verdict = agreement.decide(local, view.shared)
            in_step = verdict is Verdict.SAME
            held = self._store.held is not None
            if verdict in _DONE and not held and not _differs(local, view.shared):
                break
            if not self._apply(view):
                break  # the lock was not free: the next look does it
        self._tell("")
        self._settle_custody(view, in_step=in_step)

    def _look(self, wanted: str = "") -> _View:
        before, mine = self._view, self.custody()
        seen = self.board.look(
            self.name,
            known=before.seen.version,
            fence=mine.fence if mine.mine else 0,
            wanted=fingerprint(wanted) if wanted else "",
            asks=self.keeper and not mine.mine and self._store.write_problem() is None,
        )
        shared = before.shared if seen.version else None
        if seen.content is not None:
            try:
                shared = record.parse(seen.content)
            except Unusable as error:
                seen = replace(seen, problem=f"the login in Redis {error}. {error.remedy}")
        if seen.problem:
            # Not this version: it is asked for again, for the day that it can be read.
            return _View(replace(seen, version=0), None)
        self._view = view = _View(seen, shared)
        return view

    def _local(self, snapshot: Snapshot) -> Local:
        ours, login = snapshot.journal, snapshot.newest.login
        received = ours.received
        mine = (
            received is not None
            and login is not None
            and received.login.refresh_token == login.refresh_token
        )
        spent = dict(ours.spent)
        if received is not None and received.spent:
            spent.setdefault(received.spent, received.at_ms)
        line = ours.line if mine else ()
        return Local(login, line, spent, ours.tombstones, ours.gone, ours.agreed)

    def _apply(self, view: _View) -> bool:
        """Bring the side that is behind up to date, under our lock; False if that is not free."""
        durable.make_directory(self._store.paths.proxy_lock.parent)
        lock = ProxyLock(self._store.paths.proxy_lock)
        if not lock.acquire(_LOCK_S):
            return False
        try:
            self._apply_locked(view)
        finally:
            lock.release()
        return True

    def _apply_locked(self, view: _View) -> Verdict:
        """Bring the side that is behind up to date; what was to be done."""
        snapshot, shared = self._store.reload(), view.shared
        local = self._local(snapshot)
        verdict = agreement.decide(local, shared)
        again = verdict is Verdict.SAME and self._store.held is not None
        if (verdict is Verdict.TAKE or again) and shared is not None:
            self._take(snapshot, local, shared)
        elif verdict in (Verdict.GIVE, Verdict.GIVE_LOGOUT):
            self._give(snapshot, local, view, verdict)
        elif verdict is Verdict.FORGET and shared is not None:
            self._forget(snapshot, local, shared)
        elif verdict is Verdict.SAME and shared is not None and _differs(local, shared):
            self._note_same(snapshot, local, view, shared)
        return verdict

    def _take(self, snapshot: Snapshot, local: Local, shared: Record) -> None:
        login = shared.login
        assert login is not None
        before, held = local.fp, self._store.held
        if before == shared.fp:
            before = "" if held is None else held.spent
        spent = {**shared.spent, **local.spent}
        if before:
            spent[before] = shared.at_ms
        received = Received(
            before, login, shared.at_ms, shared.lifetime_ms, shared.forced, published=False
        )
        changed = replace(
            snapshot.journal,
            received=received,
            line=shared.line,
            agreed=shared.fp,
            tombstones={**snapshot.journal.tombstones, **shared.tombstones},
            gone={**snapshot.journal.gone, **shared.gone},
            intent=None,
        )
        changed = _bounded(changed, spent)
        try:
            self._store.write_journal(changed)
            self._store.held = None
        except OSError:
            self._store.held = received  # calls of this process use it all the same
            raise
        if self._copy:
            durable.replace_file(self._store.paths.document, render(login.raw))
        log.info(
            "login of another box is used from now on login=%s box=%s", self._store.shown, shared.by
        )

    def _give(self, snapshot: Snapshot, local: Local, view: _View, verdict: Verdict) -> None:
        ours, before = snapshot.journal, view.shared or Record()
        given = Record(by=self.board.box, at_ms=int(self._clock.now() * 1000))
        if verdict is Verdict.GIVE and (login := local.login) is not None:
            given = replace(given, login=login, line=local.line)
            received = ours.received
            if received is not None and received.login.access_token == login.access_token:
                given = replace(
                    given,
                    at_ms=received.at_ms,
                    lifetime_ms=received.lifetime_ms,
                    forced=received.forced,
                )
        spent = {**before.spent, **local.spent}
        if before.fp and before.fp != given.fp and before.fp in local.spent:
            spent[before.fp] = given.at_ms
        given = replace(
            given,
            spent=spent,
            tombstones={**before.tombstones, **local.tombstones},
            gone={**before.gone, **local.gone},
        )
        mine = self.custody()
        # A renewal that Redis knows the beginning of is fenced. A new login, and what was renewed
        # while Redis was away, is not: there the record's version and the descent decide.
        renewal = before.fp and before.fp in local.line and mine.mine
        fence = mine.fence if renewal and self._holds(view.seen, mine) else 0
        if not self.board.put(
            self.name, record.render(given), version=view.seen.version, fence=fence
        ):
            return  # another box was faster: the next round looks again
        received = ours.received
        if given.login is not None and (
            received is None or received.login.refresh_token != given.login.refresh_token
        ):
            # As a backup does: a qwen-code may delete the file.
            seen = Received("", given.login, given.at_ms, None, forced=False, published=True)
            ours = replace(ours, received=seen, line=())
        self._store.write_journal(replace(ours, agreed=given.fp or ours.agreed))
        log.info("login is given to the other boxes login=%s", self._store.shown)

    def _holds(self, seen: Seen, mine: Custody) -> bool:
        holder = seen.holder
        return holder is not None and (holder.box, holder.fence) == (self.board.box, mine.fence)

    def _forget(self, snapshot: Snapshot, local: Local, shared: Record) -> None:
        ours = snapshot.journal
        gone = {**ours.gone, **shared.gone}
        if local.fp:
            gone[local.fp] = shared.at_ms
        self._store.held = None
        self._store.write_journal(
            replace(ours, received=None, line=(), gone=gone, agreed="", intent=None)
        )
        self._remove_copy()
        log.warning(
            "login was forgotten on another box, and is not used any more login=%s box=%s",
            self._store.shown,
            shared.by,
        )

    def _note_same(self, snapshot: Snapshot, local: Local, view: _View, shared: Record) -> None:
        ours = snapshot.journal
        if shared.fp in ours.tombstones and shared.fp not in shared.tombstones:
            self._give(snapshot, local, view, Verdict.GIVE)
            return
        self._store.write_journal(
            _bounded(
                replace(
                    ours,
                    agreed=shared.fp,
                    tombstones={**ours.tombstones, **shared.tombstones},
                ),
                {**shared.spent, **ours.spent},
            )
        )

    def forget(self) -> None:
        """Forget the login on all boxes: for a deliberate logout. Our lock is held.

        When Redis is away, the others hear of it as soon as it is back.

        Raises:
            OSError: it could not be recorded.
        """
        snapshot = self._store.reload()
        ours, at_ms = snapshot.journal, int(self._clock.now() * 1000)
        gone = dict(ours.gone)
        for login in (snapshot.newest.login, ours.received.login if ours.received else None):
            if login is not None:
                gone[fingerprint(login.refresh_token)] = at_ms
        self._store.held = None
        self._store.write_journal(
            replace(ours, received=None, line=(), gone=gone, backoff=None, intent=None)
        )
        self._remove_copy()

    def _remove_copy(self) -> None:
        if self._copy:
            self._store.paths.document.unlink(missing_ok=True)

    # --- the right to renew ----------------------------------------------------------------------

    def _settle_custody(self, view: _View, *, in_step: bool) -> None:
        seen = view.seen
        silent_s = self._silence.seen(seen.holder, self._clock.monotonic())
        known = self.custody()
        fp = "" if view.shared is None else view.shared.fp
        able = (in_step or known.mine) and self._store.write_problem() is None
        step = self._decide(known, seen, silent_s, able=able, fp=fp)
        learned = custody.learn(self.board.box, known, seen, in_step=in_step)
        alive = seen.holder is not None and silent_s < self.timing.settle_s
        self._blocked = "" if alive else self._why_blocked(known, seen, fp)
        if step in (Step.WAIT, Step.HOLD) and learned == known:
            return
        durable.make_directory(self._file.path.parent)
        if not self._lock.acquire(0.0):
            return  # a token is being sent, or another worker settles it
        try:
            if self.custody() == known:
                self._do(step, learned, known, seen)
        finally:
            self._lock.release()

    def _has_open_attempt(self) -> bool:
        """Whether this box may have spent the login's refresh token without knowing: a crash, or an
        answer that was lost."""
        snapshot = self._store.snapshot()
        login, intent = snapshot.newest.login, snapshot.journal.intent
        return (
            login is not None
            and intent is not None
            and intent.fp == fingerprint(login.refresh_token)
        )

    def _why_blocked(self, known: Custody, seen: Seen, fp: str) -> str:
        """Why no box renews the login, although none is known to have the right; ""."""
        if fp and custody.is_being_spent(seen, fp, self.board.box):
            box, what = seen.spending.partition(" ")[0], "was renewing it when it disappeared"
        elif not known.keeps and (missing := custody.missing(known, seen)):
            box, what = min(missing), "may know more, and has not been seen since Redis lost data"
        else:
            return ""
        return (
            f"box {box} {what}: start that box again; if it is gone for good, run `qwen-proxy "
            "creds take-over`"
        )

    def _decide(self, known: Custody, seen: Seen, silent_s: float, *, able: bool, fp: str) -> Step:
        return custody.decide(
            self.board.box,
            known,
            seen,
            silent_s=silent_s,
            able=able,
            keeper=self.keeper,
            fp=fp,
            open_attempt=self._has_open_attempt(),
            lease_s=self.timing.lease_s,
            settle_s=self.timing.settle_s,
        )

    def _do(self, step: Step, learned: Custody, known: Custody, seen: Seen) -> None:
        """Carry a step out; the custody lock is held."""
        me = self.board.box
        if step is Step.CLAIM:
            self._claim(known, seen)
        elif step in (Step.HAND_OVER, Step.RELEASE):
            # The file first: from here on no worker of this box sends.
            self._file.write(replace(known, mine=False, free=True))
            to = seen.asks if step is Step.HAND_OVER else ""
            self.board.release(self.name, fence=known.fence, to=to)
        elif step is Step.DROP:
            self._file.write(learned)
            log.warning(
                "another box renews the login now login=%s box=%s", self._store.shown, learned.box
            )
        elif learned != known:
            self._file.write(replace(learned, mine=known.mine and learned.box == me))

    def _claim(self, known: Custody, seen: Seen, *, force: bool = False) -> bool:
        fence = self.board.claim(
            self.name, seen=seen, above=known.fence, keeps=self.keeper, force=force
        )
        if not fence:
            return False
        me, boxes = self.board.box, seen.boxes if force else known.boxes | seen.boxes
        self._file.write(Custody(fence, me, self.keeper, mine=True, boxes=boxes - {me}))
        log.info(
            "this box renews the login from now on login=%s fence=%d", self._store.shown, fence
        )
        return True

    def take_over(self) -> bool:
        """Become the box that renews, because a person says that the other one is gone for good.

        Raises:
            BoardAway: Redis cannot be asked.
            OSError: it could not be recorded.
        """
        self.sync()
        seen = self._look().seen
        durable.make_directory(self._file.path.parent)
        if seen.problem or not self._lock.acquire(_LOCK_S):
            return False
        try:
            return self._claim(self.custody(), seen, force=True)
        finally:
            self._lock.release()

    def release(self) -> None:
        """Give the right up for an orderly stop, if Redis can be told. Another worker of this box
        takes it back within seconds; if there is none, another box gets it."""
        if self.board.away or self.problem or not self._lock.acquire(0.0):
            return
        try:
            if self._has_open_attempt():
                return
            with suppress(BoardAway, OSError):
                known, view = self.custody(), self._look()  # is it there at all?
                if known.mine and self._holds(view.seen, known):
                    self._file.write(replace(known, mine=False, free=True))
                    self.board.release(self.name, fence=known.fence)
                local = self._local(self._store.snapshot())
                if not self.custody().mine and agreement.decide(local, view.shared) in _DONE:
                    self.board.leave(self.name)
        finally:
            self._lock.release()

    # --- around a renewal ------------------------------------------------------------------------

    def enter(self) -> str:
        """Prepare to spend a refresh token; our lock and qwen-code's are held.

        What the boxes know is looked at again, and brought into the journal: read it again after
        this. Call `leave` afterwards.

        Returns:
            Why this box must not spend it, as a clause; "" if it may.
        """
        if not self._lock.acquire(_LOCK_S):
            return "another process of this box decides whether it may renew"
        why = ""
        try:
            why = self._entered()
        except (OSError, Unusable, Unsealed) as error:
            why = f"the login cannot be brought in step: {error}"
        finally:
            if why:
                self._lock.release()
        return why

    def _entered(self) -> str:
        known = self.custody()
        if not known.mine:
            return self.describe()
        try:
            for _ in range(_ROUNDS):
                view = self._look()
                if view.seen.problem:
                    return view.seen.problem
                if self._apply_locked(view) in _DONE:
                    break
        except BoardAway as error:
            # Nobody else can have the right of a box that keeps it.
            return "" if known.keeps else f"Redis is away, and no box may renew it: {error}"
        if not self._holds(view.seen, known):
            return "another box may have the right to renew it"
        now_s = self._clock.monotonic()
        self._silence.seen(view.seen.holder, now_s)
        if not known.keeps and (why := self._why_blocked(known, view.seen, "")):
            return why
        if not known.keeps and self._silence.contact_s(now_s) < self.timing.settle_s:
            return "Redis has only just come back: other boxes may know more"
        return ""

    def leave(self) -> None:
        """The renewal has ended."""
        self._lock.release()

    def may_send(self, fp: str) -> str:
        """Right before the token is sent: why it must not be, as a clause; "" if it may.

        Also says in Redis that it is about to be sent: then no box sends it after us, even if we
        die before its successor is there.
        """
        known = self.custody()
        if not known.mine:
            return "another box has the right to renew it now"
        spending = f"{self.board.box} {fp}"
        try:
            if self.board.mark(self.name, fence=known.fence, spending=spending):
                return ""
        except BoardAway as error:
            return "" if known.keeps else f"Redis went away, and no box may renew it: {error}"
        return "another box has the right to renew it now"

    def not_spent(self) -> None:
        """The token was sent, and the service said that it is still good."""
        known = self.custody()
        with suppress(BoardAway):
            if known.mine:
                self.board.mark(self.name, fence=known.fence, spending="")

    def publish(self) -> None:
        """After a renewal, with all locks held: give the new login to the others. If that fails,
        the next look does it."""
        try:
            for _ in range(_ROUNDS):
                view = self._look()
                if view.seen.problem or self._apply_locked(view) in _DONE:
                    break
        except BoardAway as error:
            self._tell(str(error))
        except (OSError, Unusable, Unsealed) as error:
            self._tell(f"it cannot be brought in step: {error}")

    def ask(self, wanted: str, settled: Callable[[], bool]) -> bool:
        """Have the box that renews do it now, and wait for it for a while.

        Args:
            wanted: the access token that is to be replaced.
            settled: whether the login is good again; asked after each look.
        """
        end_s = self._clock.monotonic() + self.timing.ask_s
        while True:
            contact = self.sync(wanted=wanted)
            if settled():
                return True
            if self.may_try() or not contact or self._clock.monotonic() >= end_s:
                return False
            self._sleep(self.timing.ask_every_s)

    def _tell(self, problem: str) -> None:
        """Log a problem once, and its end."""
        self.problem = problem
        if problem == self._told:
            return
        if problem:
            log.warning(
                "login is not in step with the other boxes login=%s: %s", self._store.shown, problem
            )
        else:
            log.info("login is in step with the other boxes again login=%s", self._store.shown)
        self._told = problem


def _differs(local: Local, shared: Record | None) -> bool:
    """Whether the sides agree on the login, but not on what else is worth knowing."""
    if shared is None or shared.login is None:
        return False
    if local.agreed != shared.fp:
        return True
    return (shared.fp in local.tombstones) != (shared.fp in shared.tombstones)


def _bounded(journal: Journal, spent: dict[str, int]) -> Journal:
    for fp in sorted(spent, key=lambda each: spent[each]):
        if fp not in journal.spent:
            journal = journal.with_spent(fp, spent[fp])
    return journal
