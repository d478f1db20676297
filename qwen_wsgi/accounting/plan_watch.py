"""How things are with the plans of the accounts, in one worker: looked at every few seconds, so
that no call waits for it.

What was used is in the ledger, for all workers. Between two looks a worker adds what it has begun
itself; what the others began shows at the next look. A call that is one too many for that is
refused by the vendor, which tells more than any count.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from qwen_wsgi.accounting import plans
from qwen_wsgi.accounting.plans import State, Use
from qwen_wsgi.clock import Clock
from qwen_wsgi.plan_limits import PlanLimits, Window
from qwen_wsgi.state.database.plan_windows import KnownWindow
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable

log = logging.getLogger(__name__)

#: How often plans are looked at; and as often where few calls are left.
LOOK_S: Final = 5.0
LOOK_CLOSELY_S: Final = 1.0
#: Few are these, or this part of the limit.
_FEW: Final = 100.0
_LITTLE: Final = 0.1
#: What a vendor says is believed for so long; then one call asks again. Some serve again earlier
#: than they said, and a plan may have become a larger one.
BELIEVED_S: Final = 86_400.0
#: Steps in which what was used in a window is summed up.
_STEPS: Final = 512
#: How often the log is told that the ledger cannot be read.
_TELL_S: Final = 60.0


class Source(Protocol):
    """What it needs of the ledger; `accounting.books.Books` is one."""

    def account_uses(self, account: str, since: float, *, step_s: float) -> list[Use]:
        """What an account was asked from a time on."""

    def next_use(self, account: str, since: float) -> float | None:
        """When an account was first asked from a time on."""

    def known_windows(self) -> dict[tuple[str, str], KnownWindow]:
        """What is known of windows, by account and window."""

    def put_windows(self, known: Mapping[tuple[str, str], KnownWindow]) -> None:
        """Write what has become known of windows."""

    def fold(self) -> None:
        """Bring what was written lately into the table."""


class PlanAccount(NamedTuple):
    """An account with a plan.

    Attributes:
        kind: the plan: `coding-plan`, `token-plan`, or another family of hosts.
    """

    name: str
    kind: str
    limits: PlanLimits


@dataclass
class _Seen:
    """What the last look has found of an account.

    Attributes:
        states: of its limits.
        counted: what was used is known.
        begun: calls that are not in `states` yet: those that run, and those begun since.
    """

    account: PlanAccount
    states: tuple[State, ...]
    counted: bool
    begun: int = 0


class _Read(NamedTuple):
    states: Mapping[str, tuple[State, ...]]
    known: dict[tuple[str, str], KnownWindow]


class PlanWatch:
    """Knows which windows are spent. Shared by all greenlets of a worker.

    Args:
        accounts: those that have plans now.
        source: None counts nothing; only what vendors say is known then.
        in_flight: calls that this worker has at each account.
        apart: a thread in which the ledger is read.

    Attributes:
        seen: by account, what the last look has found; mostly empty, and then nothing has to be
            asked.
    """

    def __init__(
        self,
        accounts: Callable[[], Iterable[PlanAccount]],
        source: Source | None,
        clock: Clock,
        *,
        in_flight: Callable[[], Mapping[str, int]] = dict,
        apart: Callable[[Callable[[], _Read]], _Read] = lambda work: work(),
    ) -> None:
        self.seen: dict[str, _Seen] = {}
        self._accounts = accounts
        self._source = source
        self._clock = clock
        self._in_flight = in_flight
        self._apart = apart
        self._known: dict[tuple[str, str], KnownWindow] = {}
        #: What vendors have said since the last look, to be written down.
        self._fresh: dict[tuple[str, str], KnownWindow] = {}
        self._told_s = -math.inf
        self._looked_s = -math.inf
        self._stopped = False
        self._wake = threading.Event()

    # --- for calls: no disk, no waiting ----------------------------------------------------------

    def began(self, account: str) -> None:
        """A call begins at an account."""
        if (seen := self.seen.get(account)) is not None:
            seen.begun += 1

    def is_spent(self, account: str) -> bool:
        """Whether a window of an account's plan is spent, by its vendor's word or by our count."""
        return self.free_in_s(account) > 0

    def free_in_s(self, account: str) -> float:
        """In what time no window of an account's plan is spent any more; 0.0 if none is."""
        seen, now = self.seen.get(account), self._clock.now()
        if seen is None:
            return 0.0
        return max((_free_at(seen, state, now) - now for state in seen.states), default=0.0)

    def blocked_s(self, account: str) -> float:
        """For how long an account is not to be asked. A limit that is only assumed keeps nobody
        away, and a vendor is believed for a day."""
        seen, now = self.seen.get(account), self._clock.now()
        if seen is None:
            return 0.0
        longest = 0.0
        for state in seen.states:
            if state.told_until is not None:
                known = self._known.get((account, state.limit.window.name))
                told_at = known.told_at if known is not None and known.told_at else now
                longest = max(longest, min(state.told_until, told_at + BELIEVED_S) - now)
            elif seen.account.limits.stated:
                longest = max(longest, _free_at(seen, state, now) - now)
        return longest

    def spent_text(self, account: str) -> str:
        """Which window is spent, for the client: half a sentence; "" if none is."""
        seen, now = self.seen.get(account), self._clock.now()
        if seen is None:
            return ""
        free_at, state = max(
            ((_free_at(seen, each, now), each) for each in seen.states),
            key=lambda pair: pair[0],
            default=(0.0, None),
        )
        if state is None or free_at <= now:
            return ""
        what = f"its window of {state.limit.window.name}"
        if state.told_until is not None:
            what += ", as its vendor says,"
        elif state.limit.amount is not None:
            what += f" ({state.limit.amount:,.0f} {state.limit.unit})"
        return (
            f"the plan of account '{account}' is used up: {what} is spent until "
            f"{plans.utc_text(free_at)}"
        )

    def told(self, account: str, text: str, seconds: float) -> None:
        """A vendor has refused a call because a window is spent, and named its end.

        Args:
            text: its words.
            seconds: until the end.
        """
        found = next((each for each in self._accounts() if each.name == account), None)
        window = found and plans.told_window(found.limits, text, seconds)
        if found is None or window is None:
            return
        now = self._clock.now()
        key, until = (account, window.name), now + seconds
        known = self._known.get(key, KnownWindow())
        if known.told_until is not None and abs(known.told_until - until) < 1 and known.told_at:
            return  # as other calls were told at the same time
        begun = plans.corrected_begin(window, until, known.begun_at)
        self._known[key] = self._fresh[key] = KnownWindow(begun, until, now)
        seen = self.seen.setdefault(account, _Seen(found, (), counted=False))
        if not seen.states:
            seen.states = tuple(plans.state(limit, (), now) for limit in found.limits.limits)
        seen.states = tuple(
            state._replace(told_until=until, free_at=until, forecast_at=None)
            if state.limit.window == window
            else state
            for state in seen.states
        )
        self._wake.set()
        log.warning(
            "the plan's window is spent, its vendor says account=%s window=%s until=%s",
            account,
            window.name,
            plans.utc_text(until),
        )

    def report(self, account: str) -> dict[str, Any] | None:
        """How things are with an account's plan, for people and scripts: `{"plan", "limits",
        "counted", "windows": [State.as_json()]}`; None if it has none."""
        seen = self.seen.get(account)
        if seen is None:
            return None
        return {
            "plan": seen.account.kind,
            "limits": "stated" if seen.account.limits.stated else "assumed",
            "counted": seen.counted,
            "windows": [state.as_json() for state in seen.states],
        }

    # --- looks -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look, in this process: after the fork."""
        threading.Thread(target=self._run, name="plans", daemon=True).start()

    def stop(self) -> None:
        """Write down what vendors have said, and look no more."""
        self._stopped = True
        self._wake.set()
        if self._fresh:
            self._guarded_look()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            self._guarded_look()
            self._wake.wait(LOOK_CLOSELY_S)

    def _guarded_look(self) -> None:
        try:
            if self.is_due:
                self.look()
        except Exception as error:  # a thread's top: the next look may go better
            log.error("plans could not be looked at", exc_info=error)

    @property
    def is_due(self) -> bool:
        """Whether it is time for another look."""
        every_s = LOOK_CLOSELY_S if any(map(_is_near, self.seen.values())) else LOOK_S
        return bool(self._fresh) or self._clock.monotonic() - self._looked_s >= every_s

    def look(self) -> None:
        """Find out how things are, and write down what vendors have said. What cannot be read now
        stays as it was."""
        self._looked_s = self._clock.monotonic()
        accounts = tuple(self._accounts())
        if not accounts:
            self.seen = {}
            self._fresh.clear()
            return
        fresh, counted = dict(self._fresh), self._source is not None
        try:
            read = self._apart(partial(self._read, accounts, fresh))
        except (DatabaseUnavailable, OSError) as error:
            self._tell(error)
            read, counted = self._unread(accounts), False
        else:
            for key, known in fresh.items():
                if self._fresh.get(key) is known:
                    del self._fresh[key]
        self._known = {**read.known, **self._fresh}
        running = self._in_flight()
        self.seen = {
            each.name: _Seen(
                each,
                read.states[each.name],
                counted,
                running.get(each.name, 0) if counted else 0,
            )
            for each in accounts
        }

    def _read(
        self, accounts: Iterable[PlanAccount], fresh: Mapping[tuple[str, str], KnownWindow]
    ) -> _Read:
        """Read the ledger. In a thread of its own: touches nothing of this object that changes."""
        source, now = self._source, self._clock.now()
        if source is None:
            known = {**self._known, **fresh}
            return _Read({each.name: _states(each, known, now) for each in accounts}, known)
        source.fold()
        if fresh:
            source.put_windows(fresh)
        known, changed = {**source.known_windows(), **fresh}, {}
        states: dict[str, tuple[State, ...]] = {}
        for account in accounts:
            uses: dict[Window, list[Use]] = {}
            for window in {limit.window for limit in account.limits.limits}:
                key = (account.name, window.name)
                begun = None
                if window.kind == "first":
                    before = known.get(key, KnownWindow())
                    next_use = partial(source.next_use, account.name)
                    begun = plans.begin_of(window, now, before.begun_at, next_use)
                    if begun is not None and begun != before.begun_at:
                        known[key] = changed[key] = before._replace(begun_at=begun)
                since = plans.look_back_s(window, now, begun)
                uses[window] = source.account_uses(
                    account.name, since, step_s=window.seconds / _STEPS
                )
            states[account.name] = _states(account, known, now, uses)
        if changed:
            source.put_windows(changed)
        return _Read(states, known)

    def _unread(self, accounts: Iterable[PlanAccount]) -> _Read:
        """What is known without the ledger: what was read last, and what vendors have said."""
        now = self._clock.now()
        states = {}
        for each in accounts:
            before = self.seen.get(each.name)
            kept = before is not None and before.account == each and before.states
            states[each.name] = kept or _states(each, self._known, now)
        return _Read(states, dict(self._known))

    def _tell(self, error: Exception) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            log.error("it is not known how much of plans is used: %s", error)


def _states(
    account: PlanAccount,
    known: Mapping[tuple[str, str], KnownWindow],
    now: float,
    uses: Mapping[Window, list[Use]] | None = None,
) -> tuple[State, ...]:
    found = []
    for limit in account.limits.limits:
        window = known.get((account.name, limit.window.name), KnownWindow())
        begun = window.begun_at
        if begun is not None and begun + limit.window.seconds <= now:
            begun = None
        found.append(
            plans.state(
                limit,
                (uses or {}).get(limit.window, ()),
                now,
                credit=account.limits.credit,
                begun=begun,
                told_until=window.told_until,
            )
        )
    return tuple(found)


def _free_at(seen: _Seen, state: State, now: float) -> float:
    """When a window is free, with what was begun since it was looked at; 0.0 if it is not spent."""
    if state.free_at is not None:
        return state.free_at if state.free_at > now else 0.0
    limit = state.limit
    if limit.unit != "calls" or limit.amount is None or state.used is None or not seen.begun:
        return 0.0
    end = state.ends_at
    if end is not None and end <= now and limit.window.kind != "rolling":
        return 0.0  # it has ended since
    if state.used + seen.begun < limit.amount:
        return 0.0
    return end if end is not None and end > now else now + limit.window.seconds


def _is_near(seen: _Seen) -> bool:
    """Whether little is left of a limit, so that other workers' calls matter."""
    for state in seen.states:
        amount = state.limit.amount
        if amount is not None and state.used is not None:
            left = amount - state.used
            if left <= amount * _LITTLE or (state.limit.unit == "calls" and left <= _FEW):
                return True
    return False
