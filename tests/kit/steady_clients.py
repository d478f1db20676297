"""Clients that call again and again, and tell which of their calls failed."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

#: Makes a connection.
Connect = Callable[[], http.client.HTTPConnection]


class SteadyClients:
    """Threads that call while the context is open: some with a new connection for each call, some
    with one that they keep as long as the server does.

    A kept connection that the server has closed is opened anew before the call, as every HTTP
    client does; a connection that breaks during a call is a failure.

    Attributes:
        done: how many calls got the answer that they should.
        failures: what became of the others.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        call: Callable[[http.client.HTTPConnection], str],
        fresh: int = 2,
        kept: int = 2,
        pause_s: float = 0.04,
    ) -> None:
        self._connect = connect
        self._call = call
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._fresh) for _ in range(fresh)]
        self._threads += [threading.Thread(target=self._kept) for _ in range(kept)]
        self.done = 0
        self.failures: list[str] = []

    def __enter__(self) -> SteadyClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _fresh(self) -> None:
        for _ in self._rounds():
            with contextlib.closing(self._connect()) as client:
                self._one(client)

    def _kept(self) -> None:
        with contextlib.closing(self._connect()) as client:
            for _ in self._rounds():
                # http.client itself opens it anew after an answer with `Connection: close`.
                if not self._one(client):
                    client.close()

    def _rounds(self) -> Iterator[None]:
        while not self._stop.is_set():
            yield
            time.sleep(self._pause_s)

    def _one(self, client: http.client.HTTPConnection) -> bool:
        begun = time.monotonic()
        try:
            wrong = self._call(client)
        except Exception as error:
            wrong = repr(error)
        if wrong:
            self.failures.append(f"{wrong} after {time.monotonic() - begun:.3f} s")
        else:
            self.done += 1
        return not wrong
