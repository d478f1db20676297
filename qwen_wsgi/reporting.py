"""Tells what a worker does: the other workers, and systemd, for `systemctl status`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from qwen_wsgi.state.workers import Worker, Workers

#: The variable in which the master tells its workers why new settings were refused at a reload.
REFUSED: Final = "_QWEN_PROXY_REFUSED"

#: systemd reads at once; a message that does not fit is not worth a wait.
_SEND_S: Final = 1.0


class Reporting:
    """Describes this worker to the others; the one with the lowest pid describes all to systemd.

    Args:
        workers: where all describe themselves.
        calls: the calls of this worker: in flight, and ended.
        accounts: how many accounts there are, and how many of them are usable.
        stopping: whether this worker stops.
        notify: sends a text to systemd.
        refused: why the latest reload has changed no setting; empty if it did.
    """

    def __init__(
        self,
        workers: Workers,
        *,
        calls: Callable[[], tuple[int, int]],
        accounts: Callable[[], tuple[int, int]],
        stopping: Callable[[], bool],
        notify: Callable[[str], None],
        refused: str = "",
    ) -> None:
        self._workers = workers
        self._calls = calls
        self._accounts = accounts
        self._stopping = stopping
        self._notify = notify
        self._refused = " ".join(refused.split())
        self._told = ""

    def report(self) -> None:
        """Describe this worker, and all of them if it is this worker's part."""
        pid = os.getpid()
        self._workers.write(Worker(pid, *self._calls()))
        workers = self._workers.all()
        if not workers or workers[0].pid != pid:
            self._told = ""
            return
        text = self._text(workers)
        if text != self._told:
            self._notify(f"STATUS={text}")
            self._told = text

    def close(self) -> None:
        """This worker ends."""
        self._workers.remove(os.getpid())

    def _text(self, workers: list[Worker]) -> str:
        found, usable = self._accounts()
        in_flight = sum(each.in_flight for each in workers)
        ended = sum(each.ended for each in workers)
        return (
            f"{'stopping, ' if self._stopping() else ''}{_count(len(workers), 'worker')}, "
            f"{usable} of {_count(found, 'account')} usable, "
            f"{_count(in_flight, 'call')} in flight, {ended} served"
            + (f"; settings not reloaded: {self._refused}" if self._refused else "")
        )


def notifier(address: str) -> Callable[[str], None]:
    """A function that sends texts to systemd (sd_notify(3)); one that does nothing without systemd.

    Args:
        address: the value of NOTIFY_SOCKET: a path, or a name that begins with `@`.
    """

    def notify(text: str) -> None:
        # A report that is lost is followed by the next one.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_S)
            sender.sendto(text.encode(), path)

    path = "\0" + address[1:] if address.startswith("@") else address
    return notify if address else lambda text: None


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
