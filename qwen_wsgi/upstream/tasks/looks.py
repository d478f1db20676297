"""Looks at tasks for clients, as rarely as Model Studio wants it and as often as is of use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import Overloaded
from qwen_wsgi.upstream.tasks.tasks import Tasks, TaskState

#: What a look told is good for so long.
FRESH_S: Final = 1.0
#: Model Studio takes 20 questions a second for all tasks of an account; some are left to others.
_PER_S: Final = 16
_LONGEST_WAIT_S: Final = 15.0
#: Tasks whose state is kept.
_MOST: Final = 2000


@dataclass
class _Known:
    state: TaskState
    at_s: float


class TaskLooks:
    """The latest states of tasks. Shared by all greenlets of a worker.

    However many clients ask for however many tasks, an account is asked in steady steps, its share
    for each worker. While its step is not there yet, a caller gets the state before; one that knows
    none waits.

    Args:
        workers: that ask the same accounts.
    """

    def __init__(
        self,
        tasks: Tasks,
        clock: Clock,
        *,
        workers: int = 1,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._step_s = max(1, workers) / _PER_S
        self._sleep = sleep
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        #: When an account may be asked next, by name; monotonic.
        self._next_s: dict[str, float] = {}

    def look(self, account: Account, id: str) -> TaskState:
        """The state of a task, a second old or a bit more.

        Raises:
            ApiError: no answer, or a refusal; 503 if too many ask about other tasks.
        """
        key = (account.name, id)
        with self._lock:
            now_s = self._clock.monotonic()
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                if not known.state.is_open or now_s - known.at_s < FRESH_S:
                    return known.state
            wait_s = self._next_s.get(account.name, now_s) - now_s
            if known is not None and wait_s > 0:
                return known.state
            if wait_s > _LONGEST_WAIT_S:
                raise Overloaded(
                    "So many tasks are asked about that this one's turn would come too late.",
                    code="too_many_looks",
                    retry_after_s=wait_s,
                )
            self._next_s[account.name] = max(now_s, now_s + wait_s) + self._step_s
            if known is not None:
                known.at_s = now_s  # the others need not ask as well
        if wait_s > 0:
            self._sleep(wait_s)
        state = self._tasks.look(account, id)
        self.remember(account, id, state)
        return state

    def remember(self, account: Account, id: str, state: TaskState) -> None:
        """Keep a state that is known from elsewhere, such as a task's beginning."""
        with self._lock:
            self._known[account.name, id] = _Known(state, self._clock.monotonic())
            self._known.move_to_end((account.name, id))
            while len(self._known) > _MOST:
                self._known.popitem(last=False)

    def forget(self, account: Account, id: str) -> None:
        """Ask anew next time."""
        with self._lock:
            self._known.pop((account.name, id), None)
