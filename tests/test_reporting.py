"""What `systemctl status` shows of the server."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qwen_wsgi.reporting import Reporting, notifier
from qwen_wsgi.state.workers import Worker, Workers
from tests.fakes.clock import FakeClock
from tests.kit.servers import short_directory


class World:
    """A worker that reports, and what it told systemd."""

    def __init__(self) -> None:
        self.calls, self.accounts, self.stopping = (0, 0), (1, 1), False
        self.told: list[str] = []
        self.workers = Workers(None, boottime=FakeClock().monotonic)
        self.reporting = Reporting(
            self.workers,
            calls=lambda: self.calls,
            accounts=lambda: self.accounts,
            stopping=lambda: self.stopping,
            notify=self.told.append,
        )


def test_one_worker_tells_of_all() -> None:
    world = World()
    world.workers.write(Worker(os.getpid() + 1, 4, 100))
    world.calls, world.accounts = (1, 20), (3, 2)
    world.reporting.report()
    world.stopping = True
    world.reporting.report()

    assert world.told == [
        "STATUS=2 workers, 2 of 3 accounts usable, 5 calls in flight, 120 served",
        "STATUS=stopping, 2 workers, 2 of 3 accounts usable, 5 calls in flight, 120 served",
    ]


def test_the_others_are_silent() -> None:
    world = World()
    world.workers.write(Worker(1, 0, 0))
    world.reporting.report()
    assert world.told == []

    world.workers.remove(1)
    world.reporting.report()
    assert world.told == ["STATUS=1 worker, 1 of 1 account usable, 0 calls in flight, 0 served"]


def test_nothing_new_is_not_told_again() -> None:
    world = World()
    world.reporting.report()
    world.reporting.report()
    assert len(world.told) == 1

    world.reporting.close()
    assert world.workers.all() == []


@pytest.mark.parametrize("abstract", [False, True], ids=["a path", "an abstract name"])
def test_systemd_is_sent_a_datagram(abstract: bool) -> None:
    with (
        short_directory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as socket_,
    ):
        name = str(Path(directory) / "notify")
        socket_.bind("\0" + name if abstract else name)
        socket_.settimeout(5)
        notifier("@" + name if abstract else name)("STATUS=well")

        assert socket_.recv(100) == b"STATUS=well"


def test_without_systemd_nothing_happens() -> None:
    notifier("")("STATUS=well")
    notifier("/no/such/socket")("STATUS=well")
