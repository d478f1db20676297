"""Waits of calls for the end of a pause, cut short when any worker has news of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from qwen_wsgi.clock import sleep

#: How often the shared number is looked at while somebody waits.
LOOK_EVERY_S: Final = 0.05


class Waiting:
    """Lets the calls of a worker wait.

    One thread looks for all of them, as long as there are any: however many wait, that is twenty
    looks a second, and none while nobody waits. Safe for greenlets and threads.

    Args:
        news: a value that changes with every piece of news; cheap to read.
    """

    def __init__(
        self,
        news: Callable[[], float],
        *,
        look_every_s: float = LOOK_EVERY_S,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._news = news
        self._look_every_s = look_every_s
        self._sleep = sleep
        self._guard = threading.Lock()
        self._woken: set[threading.Event] = set()
        self._looking = False

    def wait(self, seconds: float, seen: float) -> None:
        """Wait for so long, or until there is news.

        Args:
            seen: the news as it was before the caller looked at the pause.
        """
        woken = threading.Event()
        with self._guard:
            if self._news() != seen:
                return
            self._woken.add(woken)
            begin = not self._looking
            self._looking = True
        try:
            if begin:
                self._begin(seen)
            woken.wait(seconds)
        finally:
            self._woken.discard(woken)

    def _begin(self, seen: float) -> None:
        try:
            threading.Thread(
                target=self._look, args=(seen,), name="pause-news", daemon=True
            ).start()
        except RuntimeError:  # no more threads: this call waits for its whole time
            self._looking = False

    def _look(self, seen: float) -> None:
        while True:
            with self._guard:
                if not self._woken:
                    self._looking = False
                    return
            self._sleep(self._look_every_s)
            news = self._news()
            if news != seen:
                seen = news
                for woken in tuple(self._woken):
                    woken.set()
