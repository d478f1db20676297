"""Places at an account, and the queue in front of them."""

from __future__ import annotations

import threading
import time

import pytest

from qwen_wsgi.errors import Overloaded
from qwen_wsgi.upstream.routing.limiter import Limiter, Slot
from tests.kit.servers import wait_until


class Waiter:
    """A call in a thread of its own that waits for a place."""

    def __init__(
        self, gate: Limiter, client: str, served: list[str], timeout_s: float = 10
    ) -> None:
        self.error: Exception | None = None
        self.place: Slot | None = None

        def run() -> None:
            try:
                self.place = gate.acquire(client, timeout_s)
                served.append(client)
            except Overloaded as error:
                self.error = error

        waiting = gate.waiting
        self.thread = threading.Thread(target=run)
        self.thread.start()
        while gate.waiting == waiting and self.thread.is_alive():
            time.sleep(0.001)


def test_without_a_limit_nobody_waits() -> None:
    gate = Limiter(0, 0)
    places = [gate.acquire("a", 0) for _ in range(1000)]
    assert gate.in_flight == 1000
    for place in places:
        place.release()
        place.release()
    assert gate.in_flight == 0


def test_clients_take_turns() -> None:
    gate, served = Limiter(1, 100), list[str]()
    place: Slot | None = gate.acquire("busy", 0)
    waiters = [Waiter(gate, name, served) for name in ("busy", "busy", "busy", "other", "third")]
    assert gate.waiting == 5
    for count in range(1, 6):
        assert place is not None
        place.release()
        while len(served) < count:
            time.sleep(0.001)
        (place,) = [
            w.place for w in waiters if w.place and w.place._limiter and w.place is not place
        ]
    assert served == ["busy", "other", "third", "busy", "busy"]
    assert place is not None
    place.release()
    assert (gate.in_flight, gate.waiting) == (0, 0)
    for waiter in waiters:
        waiter.thread.join()


def test_a_full_queue_says_no_at_once() -> None:
    gate, served = Limiter(1, 1), list[str]()
    place = gate.acquire("a", 0)
    waiter = Waiter(gate, "a", served)
    with pytest.raises(Overloaded) as caught:
        gate.acquire("b", 10)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2)
    place.release()
    waiter.thread.join()
    assert (gate.in_flight, gate.waiting) == (1, 0)


def test_who_waits_too_long_gives_up_its_turn() -> None:
    gate, served = Limiter(1, 10), list[str]()
    place = gate.acquire("a", 0)
    short = Waiter(gate, "b", served, timeout_s=0.05)
    long = Waiter(gate, "b", served)
    short.thread.join()
    assert isinstance(short.error, Overloaded)
    # The other one may have come only now.
    wait_until(lambda: gate.waiting == 1, "one waits")
    place.release()
    long.thread.join()
    assert served == ["b"]
    assert gate.in_flight == 1


def test_a_client_that_goes_away_leaves_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place may come in the very moment in which its waiter is thrown out."""

    class Gone(BaseException):
        pass

    class Turn(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if grant:
                place.release()
            raise Gone

    monkeypatch.setattr("qwen_wsgi.upstream.routing.limiter.threading.Event", Turn)
    for grant in (False, True):
        gate = Limiter(1, 10)
        place = gate.acquire("a", 0)
        with pytest.raises(Gone):
            gate.acquire("b", 10)
        assert gate.waiting == 0
        assert gate.in_flight == (0 if grant else 1)
