"""Limits that boxes share: the same arithmetic as in a file, and what becomes of it when Redis is
away, begun anew, or when workers die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.access import limits as arithmetic
from qwen_wsgi.access.limits import (
    BUCKET_MS,
    STATE_BYTES,
    WINDOW_MS,
    Calendar,
    Granted,
    Limits,
    Refused,
    State,
)
from qwen_wsgi.state.limits.counters import LimitCounters
from qwen_wsgi.state.redis.connection import PROBE_S, SharedStore
from qwen_wsgi.state.redis.limits import (
    LEASE_S,
    SharedCounter,
    SharedGranted,
    SharedLimitCounters,
    open_key,
)
from tests.fakes.clock import FakeClock
from tests.kit.properties import examples
from tests.kit.redis_server import RedisServer, needs_redis

pytestmark = needs_redis

LIMITS = Limits(rpm=10, tpm=1000, tokens_per_day=5000, concurrency=4)
ALL = {"rpm": 10, "tpm": 1000, "tokens_per_day": 5000, "concurrency": 4}


class Boxes:
    """Boxes with one Redis and one clock."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.clock = FakeClock()
        self.dead: set[str] = set()
        self.later: Callable[[Callable[[], None]], None] = lambda work: work()
        self._made: list[tuple[SharedLimitCounters, SharedStore]] = []

    def worker(self, box: str = "a", name: str = "") -> SharedLimitCounters:
        name = name or f"worker-{len(self._made)}"
        store = SharedStore(self.url, box, self.clock, patience_s=10.0)

        def is_gone(worker: str, silent_s: float) -> bool:
            return worker in self.dead

        files = LimitCounters(
            self.directory / box,
            self.clock,
            Calendar("UTC"),
            boottime=self.clock.monotonic,
            worker=lambda: name,
            is_gone=is_gone,
        )
        made = SharedLimitCounters(
            store,
            files,
            self.clock,
            Calendar("UTC"),
            later=lambda work: self.later(work),
            worker=lambda: name,
            is_gone=is_gone,
            at_ms=self.at_ms,
        )
        self._made.append((made, store))
        return made

    def at_ms(self) -> int:
        return round(self.clock.monotonic() * 1000)

    def probe(self) -> None:
        """Let each worker's second pass."""
        self.clock.advance(PROBE_S)
        for _, store in self._made:
            store.look()

    def close(self) -> None:
        for made, store in self._made:
            made.close()
            store.close()


@pytest.fixture
def boxes(tmp_path: Path, redis_server: RedisServer) -> Iterator[Boxes]:
    made = Boxes(tmp_path, redis_server.url)
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Boxes, RedisServer]]:
    """With a Redis that the test may harm."""
    (tmp_path / "r").mkdir()
    with RedisServer(tmp_path / "r") as server:
        made = Boxes(tmp_path, server.url)
        yield made, server
        made.close()


def reserved(counter: SharedCounter, tokens: int = 0, limits: Limits = LIMITS) -> Granted:
    found = counter.reserve(limits, tokens=tokens)
    assert isinstance(found, Granted), found
    return found


def left(counter: SharedCounter) -> dict[str, float]:
    return {name: room.left for name, room in counter.remaining(LIMITS).items()}


# --- the same arithmetic -------------------------------------------------------------------------


def test_two_boxes_share_every_limit(boxes: Boxes) -> None:
    one, other = boxes.worker("a").of("c"), boxes.worker("b").of("c")
    call = reserved(one, 300)
    reserved(other, 100)
    one.count(2)

    assert left(one) == left(other)
    assert left(one) == {"rpm": 6, "tpm": 600, "tokens_per_day": 4600, "concurrency": 2}
    one.settle(call, 50)
    assert left(other) == {"rpm": 6, "tpm": 850, "tokens_per_day": 4850, "concurrency": 3}
    assert one.known_remaining(LIMITS)["rpm"].left == 6


def test_of_400_exactly_100_pass(boxes: Boxes) -> None:
    counters = [boxes.worker(box).of("c") for box in ("a", "b")]

    found = [counters[n % 2].reserve(Limits(rpm=100), places=0) for n in range(400)]

    assert sum(isinstance(each, Granted) for each in found) == 100
    assert found[-1] == Refused("rpm", 100, 100, 1, 60.0)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits(tpm=10), "tpm"),
        (Limits(tokens_per_day=10), "tokens_per_day"),
        (Limits(money_per_month=0.0), "money_per_month"),
        (Limits(concurrency=0), "concurrency"),
        (Limits(rpm=0), "rpm"),
    ],
)
def test_a_refusal_names_its_limit(boxes: Boxes, limits: Limits, named: str) -> None:
    found = boxes.worker().of("c").reserve(limits, tokens=11)

    assert isinstance(found, Refused)
    assert found.limit == named


STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 2000), st.integers(0, 90_000), st.just(-300)),
        st.integers(1, 3),
        st.integers(0, 40),
        st.integers(0, 60),
        st.booleans(),
    ),
    max_size=30,
)


@examples(15)
@given(STEPS, st.integers(1, 8), st.integers(1, 100), st.integers(0, 86_399))
def test_the_script_does_what_the_arithmetic_of_the_files_does(
    running_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int, int, int, bool]],
    rpm: int,
    tpm: int,
    second_of_day: int,
) -> None:
    """Byte for byte the same state, whatever is reserved and settled, and whichever way clocks
    step."""
    running_redis.command("FLUSHALL")
    boxes = Boxes(tmp_path_factory.mktemp("same"), running_redis.url)
    boxes.clock.advance(second_of_day)
    workers = [boxes.worker("a"), boxes.worker("b")]
    state, limits = State(), Limits(rpm=rpm, tpm=tpm, tokens_per_day=5 * tpm, concurrency=6)
    under_way: list[tuple[SharedCounter, Granted, int]] = []
    try:
        for number, (pause_ms, requests, tokens, used, ends) in enumerate(steps):
            boxes.clock.advance(pause_ms / 1000)
            counter = workers[number % 2].of("c")
            now = workers[0].moment(boxes.at_ms())
            expected = arithmetic.reserve(state, limits, now, requests=requests, tokens=tokens)
            found = counter.reserve(limits, requests=requests, tokens=tokens)
            assert found == expected
            if isinstance(found, Granted):
                under_way.append((counter, found, used))
            if ends and under_way:
                counter, first, amount = under_way.pop(0)
                unsent = first.requests if amount % 7 == 0 else 0
                arithmetic.settle(state, first, amount, amount, now, requests=unsent)
                state.places[0] -= 1
                counter.settle(first, amount, amount, requests=unsent)
            known = counter.state.copy()
            # Who has begun it, and the calls in flight, are not in a file.
            known.head[9] = known.head[10] = 0
            assert known.pack()[: STATE_BYTES - 1024] == state.pack()[: STATE_BYTES - 1024]
    finally:
        boxes.close()


@examples(10)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 2000), st.integers(0, 90_000)),
            st.integers(1, 3),
            st.integers(0, 40),
        ),
        max_size=40,
    ),
    st.integers(1, 8),
    st.integers(1, 100),
)
def test_a_window_lets_pass_what_a_list_of_times_would(
    running_redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int, int]],
    rpm: int,
    tpm: int,
) -> None:
    """The model of tests/access/test_limits.py."""
    running_redis.command("FLUSHALL")
    boxes = Boxes(tmp_path_factory.mktemp("window"), running_redis.url)
    counters = [boxes.worker(box).of("c") for box in ("a", "b")]
    taken: list[tuple[int, int, int]] = []

    def within(window_ms: int) -> tuple[int, int]:
        recent = [each for each in taken if each[0] > boxes.at_ms() - window_ms]
        return sum(each[1] for each in recent), sum(each[2] for each in recent)

    try:
        for number, (pause_ms, requests, tokens) in enumerate(steps):
            boxes.clock.advance(pause_ms / 1000)
            found = counters[number % 2].reserve(
                Limits(rpm=rpm, tpm=tpm), requests=requests, tokens=tokens
            )
            if isinstance(found, Granted):
                taken.append((boxes.at_ms(), requests, tokens))
                used = within(WINDOW_MS)
                assert used[0] <= rpm
                assert used[1] <= tpm
            else:
                used = within(WINDOW_MS + BUCKET_MS)
                assert used[0] + requests > rpm or used[1] + (tokens or 1) > tpm
    finally:
        boxes.close()


def test_what_was_not_sent_is_given_back(boxes: Boxes) -> None:
    counter = boxes.worker().of("c")
    call = counter.reserve(LIMITS, requests=3, tokens=300)
    assert isinstance(call, SharedGranted)

    counter.settle(call, 0, requests=3)

    assert left(counter) == ALL


def test_by_redis_own_clock(boxes: Boxes) -> None:
    worker = boxes.worker()
    worker.at_ms = lambda: None
    counter = worker.of("c")
    reserved(counter, 100)
    worker.beat()

    rooms = counter.remaining(LIMITS)

    assert rooms["rpm"].left == 9
    assert 55 < rooms["rpm"].reset_s <= 60


# --- workers and boxes that die ------------------------------------------------------------------


def test_a_dead_worker_of_this_box_is_cleared_within_a_second(boxes: Boxes) -> None:
    dying, other = boxes.worker("a", "dying"), boxes.worker("a")
    reserved(dying.of("c"), 300)
    reserved(dying.of("d"), 20)
    boxes.probe()
    assert left(other.of("c"))["concurrency"] == 3

    boxes.dead.add("dying")
    other.beat()

    # Its request was sent.
    assert left(other.of("c")) == {**ALL, "rpm": 9}
    assert left(other.of("d")) == {**ALL, "rpm": 9}


def test_a_dead_box_is_cleared_when_its_lease_is_over(
    boxes: Boxes, redis_server: RedisServer
) -> None:
    gone, other = boxes.worker("gone"), boxes.worker("b")
    other.at_ms = gone.at_ms = lambda: None
    reserved(gone.of("c"), 300)
    gone.beat()
    other.beat()
    assert left(other.of("c"))["concurrency"] == 3

    redis_server.command("ZADD", "qwen-proxy:workers", "1", gone.worker)
    other.beat()
    assert left(other.of("c"))["concurrency"] == 3, "it has just begun to look"
    boxes.clock.advance(LEASE_S + 1)
    other.beat()
    assert left(other.of("c")) == {**ALL, "rpm": 9}
    assert redis_server.command("EXISTS", open_key(gone.worker)) == 0


def test_a_worker_that_was_thought_dead_settles_and_nothing_is_given_back_twice(
    boxes: Boxes,
) -> None:
    slow, other = boxes.worker("a", "slow"), boxes.worker("a")
    call = reserved(slow.of("c"), 300)
    boxes.probe()
    boxes.dead.add("slow")
    other.beat()

    slow.of("c").settle(call, 50)

    assert left(other.of("c")) == {"rpm": 9, "tpm": 950, "tokens_per_day": 4950, "concurrency": 4}


def test_a_worker_that_was_thought_dead_takes_its_own_back_when_it_goes_on(boxes: Boxes) -> None:
    slow, other = boxes.worker("a", "slow"), boxes.worker("a")
    call = reserved(slow.of("c"), 300)
    boxes.probe()
    boxes.dead.add("slow")
    other.beat()
    assert left(other.of("c"))["concurrency"] == 4

    boxes.dead.clear()
    boxes.clock.advance(10)
    slow.beat()
    assert left(other.of("c")) == {
        "rpm": 9,
        "tpm": 700,
        "tokens_per_day": 4700,
        "concurrency": 3,
    }
    slow.of("c").settle(call, 50)
    assert left(other.of("c")) == {"rpm": 9, "tpm": 950, "tokens_per_day": 4950, "concurrency": 4}


def test_a_question_that_was_done_and_broken_off_leaves_nothing(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = boxes.worker()
    counter = worker.of("c")
    assert left(counter) == ALL
    run = worker.run

    def lost(keys: tuple[str, str], args: list[object]) -> list[object]:
        run(keys, args)
        worker.store._lose(TimeoutError())
        return worker.store.run(lambda client: [])

    monkeypatch.setattr(worker, "run", lost)
    call = counter.reserve(LIMITS, tokens=300)
    monkeypatch.setattr(worker, "run", run)
    assert not isinstance(call, SharedGranted)
    assert isinstance(call, Granted)
    boxes.probe()
    boxes.clock.advance(10)
    worker.beat()
    worker.beat()

    # The request that was done counts, and the one that was made in its place.
    found = left(counter)
    assert found == {"rpm": 8, "tpm": 700, "tokens_per_day": 4700, "concurrency": 4}
    counter.settle(call, 100)
    assert left(counter)["tpm"] == 900


# --- Redis away, back, begun anew ----------------------------------------------------------------


def test_while_it_is_away_each_box_counts_by_itself_and_then_all_is_added(
    own: tuple[Boxes, RedisServer],
) -> None:
    boxes, server = own
    one, other = boxes.worker("a").of("c"), boxes.worker("b").of("c")
    before = reserved(one, 100)
    server.kill()
    boxes.probe()

    calls = [reserved(one, 200), reserved(one, 200)]
    reserved(other, 300)
    other.count(1)
    assert one.known_remaining(LIMITS)["rpm"].left == 8, "the window begins anew"
    assert one.known_remaining(LIMITS)["tokens_per_day"].left == 4500, "the day does not"
    one.settle(before, 50)
    one.settle(calls[0], 20)
    server.start()  # without its data
    boxes.probe()
    boxes.probe()

    # 50 + 20 + 200 + 300; the first call was of the window that Redis has lost.
    assert left(one)["rpm"] == left(other)["rpm"] == 10 - 4
    assert left(one)["tokens_per_day"] == left(other)["tokens_per_day"]
    assert 5000 - 570 - 100 <= left(one)["tokens_per_day"] <= 5000 - 570
    one.settle(calls[1], 10)
    assert left(other)["tokens_per_day"] == left(one)["tokens_per_day"]


def test_a_flushed_redis_gets_back_the_day_and_the_calls_in_flight(
    boxes: Boxes, redis_server: RedisServer
) -> None:
    one, other = boxes.worker("a").of("c"), boxes.worker("b").of("c")
    boxes.probe()
    done = reserved(one, 400)
    one.settle(done, 400)
    reserved(other, 100)
    redis_server.command("FLUSHALL")

    boxes.clock.advance(10)
    boxes.probe()
    boxes.probe()

    assert left(one) == {"rpm": 10, "tpm": 1000, "tokens_per_day": 4500, "concurrency": 3}
    assert left(other) == left(one)


def test_a_settlement_whose_answer_was_lost_counts_once(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = boxes.worker()
    counter = worker.of("c")
    call = reserved(counter, 300)
    run = worker.run

    def lost(keys: tuple[str, str], args: list[object]) -> list[object]:
        run(keys, args)
        worker.store._lose(TimeoutError())
        return worker.store.run(lambda client: [])

    monkeypatch.setattr(worker, "run", lost)
    counter.settle(call, 70)
    monkeypatch.setattr(worker, "run", run)
    boxes.probe()

    assert left(counter) == {"rpm": 9, "tpm": 930, "tokens_per_day": 4930, "concurrency": 4}


def test_what_waits_of_many_minutes_is_bounded(own: tuple[Boxes, RedisServer]) -> None:
    boxes, server = own
    counter = boxes.worker().of("c")
    limits = Limits(tokens_per_day=10**9)
    boxes.probe()  # as a worker does when it begins
    reserved(counter, 1, limits)
    server.kill()
    boxes.probe()
    for _ in range(1000):
        boxes.clock.advance(1)
        counter.settle(reserved(counter, 5, limits), 5)
    assert len(counter._waiting) <= 300
    server.start()
    boxes.probe()

    assert counter.remaining(limits)["tokens_per_day"].left == 10**9 - 5001


def test_a_call_whose_place_is_given_back_in_the_background_is_not_in_the_way(boxes: Boxes) -> None:
    waiting: list[Callable[[], None]] = []
    boxes.later = waiting.append
    counter = boxes.worker().of("c")
    limits = Limits(concurrency=1)
    counter.settle(reserved(counter, 0, limits), 5)
    assert (len(waiting), counter.has_waiting) == (1, True)

    reserved(counter, 0, limits)

    waiting.pop()()
    assert (len(waiting), counter.has_waiting) == (0, False)
