"""Lanes: one response after the other in each, and all beside each other, within limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.websocket.lanes import MOST_ACTIVE, MOST_NAMED, MOST_WAITING, Lanes


def started(lanes: Lanes[str]) -> list[str]:
    """All that may run now."""
    found = []
    while (ready := lanes.next()) is not None:
        found.append(ready[1])
    return found


def test_a_lane_runs_one_after_the_other_and_lanes_run_beside_each_other() -> None:
    lanes: Lanes[str] = Lanes()
    for stream_id, name in ((None, "1"), (None, "2"), ("a", "a1"), (None, "3"), ("a", "a2")):
        lanes.add(stream_id, name)

    assert started(lanes) == ["1", "a1"]
    lanes.done(None)
    assert started(lanes) == ["2"]
    lanes.done("a")
    lanes.done(None)
    assert started(lanes) == ["3", "a2"]
    lanes.done(None)
    assert lanes.busy
    lanes.done("a")
    assert not lanes.busy


def test_no_more_than_so_many_run() -> None:
    lanes: Lanes[str] = Lanes()
    for number in range(MOST_ACTIVE + 2):
        lanes.add(f"lane-{number}", str(number))

    assert len(started(lanes)) == MOST_ACTIVE
    lanes.done("lane-3")
    assert started(lanes) == [str(MOST_ACTIVE)]


def test_names_are_limited_and_the_lane_without_one_is_not_counted() -> None:
    lanes: Lanes[str] = Lanes()
    for number in range(MOST_NAMED):
        lanes.add(f"lane-{number}", "x")
        started(lanes)
        lanes.done(f"lane-{number}")

    lanes.add(None, "x")
    lanes.add("lane-0", "x")
    with pytest.raises(ApiError) as caught:
        lanes.add("one-more", "x")

    assert (caught.value.status, caught.value.code) == (400, "websocket_stream_limit_reached")


def test_so_many_may_wait() -> None:
    lanes: Lanes[str] = Lanes()
    lanes.add(None, "runs")
    assert started(lanes) == ["runs"]
    for number in range(MOST_WAITING):
        lanes.add(None, str(number))

    with pytest.raises(ApiError) as caught:
        lanes.add(None, "one more")

    assert (caught.value.status, caught.value.code) == (429, "too_many_queued_requests")
    assert [name for _, name in lanes.clear()] == [str(n) for n in range(MOST_WAITING)]
    assert started(lanes) == []


@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans()), max_size=60))
def test_in_a_lane_nothing_overlaps_or_overtakes(
    steps: list[tuple[str | None, bool]],
) -> None:
    lanes: Lanes[int] = Lanes()
    running: dict[str | None, int] = {}
    order: dict[str | None, list[int]] = {}
    for number, (stream_id, ends) in enumerate(steps):
        lanes.add(stream_id, number)
        while (ready := lanes.next()) is not None:
            lane, taken = ready
            assert lane not in running
            running[lane] = taken
            order.setdefault(lane, []).append(taken)
        if ends and running:
            lane = sorted(running, key=str)[0]
            del running[lane]
            lanes.done(lane)

    assert all(each == sorted(each) for each in order.values())
