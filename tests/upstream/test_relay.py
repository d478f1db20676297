"""A stream's way to its client: keep-alives, an honest end, and nothing left open."""

from __future__ import annotations

import json
from typing import Any

import gevent
import pytest

from qwen_wsgi.accounting.ledger import row
from qwen_wsgi.errors import ApiError, UpstreamError, UpstreamTimeout
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.upstream.open_stream import OpenStream
from tests.upstream.relay_world import (
    FINISH,
    KEEP_ALIVE,
    MORE,
    TEXT,
    USAGE_CHUNK,
    Step,
    World,
    chunk,
)


def error_in(block: bytes) -> dict[str, Any]:
    assert block.endswith(b"\n\n")
    error: dict[str, Any] = json.loads(sse.data(block.strip()) or b"")["error"]
    return error


@pytest.fixture(autouse=True, params=["yielded", "passed"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whatever way the events take, the client must not see it."""
    found: bool = request.param == "passed"
    monkeypatch.setattr(World, "passes", found)
    return found


def test_events_go_out_as_they_come_and_done_at_the_end() -> None:
    world = World(MORE, FINISH + USAGE_CHUNK, sse.DONE)
    assert world.relay.wait_first()

    assert world.run() == [TEXT, MORE, FINISH, sse.DONE]

    assert not world.broken
    assert world.record.outcome == "complete"
    assert world.record.error_code == ""
    assert world.record.usage == Usage(total=5)
    assert world.reader.at_end
    assert world.reader.closed >= 1


def test_the_client_gets_done_although_the_upstream_forgot_it() -> None:
    assert World(FINISH).run() == [TEXT, FINISH, sse.DONE]


def test_nothing_is_told_of_a_call_before_its_stream_is_open() -> None:
    world = World(FINISH)

    assert (world.record.usage, world.record.outcome) == (None, "open")


def test_the_time_of_the_first_byte_is_noted() -> None:
    world = World(50.0, FINISH)
    world.clock.advance(7)
    world.relay.wait_first()

    world.run()

    assert world.record.first_byte_at == 1000.0


def test_the_longest_silences_have_their_places() -> None:
    pauses = (0.1, 3.0, 0.5, 0.2, 20.0, 1.0, 0.4, 2.0, 0.3)
    steps: list[Step] = []
    for pause in pauses:
        steps += [pause, MORE]
    world = World(*steps, FINISH)

    world.run()

    record = world.record
    assert [round(seconds, 3) for _, seconds in record.gaps] == [3.0, 0.5, 20.0, 1.0, 2.0]
    assert [round(begin - 1000, 3) for begin, _ in record.gaps] == [0.1, 3.1, 3.8, 23.8, 25.2]
    assert (record.longest_gap_s, record.least_gap_s) == (20.0, 0.5)
    assert row(record, 1.0, None).gaps is not None

    world = World(*(0.15, MORE) * 9, FINISH)  # shorter ones are none
    world.run()
    assert (world.record.gaps, row(world.record, 1.0, None).gaps) == ((), None)


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((MORE,), "upstream_broken"),
        ((), "upstream_broken"),
        ((UpstreamError("broke off", code="upstream_broken"),), "upstream_broken"),
        ((FINISH, UpstreamError("broke off", code="upstream_broken")), "upstream_broken"),
        ((120.0, FINISH), "upstream_timeout"),
        ((MORE, 99.0, MORE, 120.0), "upstream_timeout"),
    ],
    ids=["no finish", "nothing more", "cut", "cut after the finish", "silence", "silence later"],
)
def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done(
    steps: tuple[Step, ...], code: str
) -> None:
    world = World(*steps)

    out = world.run()

    assert error_in(out[-1])["code"] == code
    assert sse.DONE not in out
    assert world.broken
    assert world.record.outcome == "upstream_error"
    assert world.record.error_code == code
    assert world.reader.closed >= 1


def test_a_stream_without_content_ends_with_an_error_event() -> None:
    world = World(sse.DONE, first=chunk({"role": "assistant", "content": ""}))

    out = world.run()

    assert error_in(out[-1])["code"] == "upstream_empty"
    assert world.broken


def test_an_error_frame_of_the_upstream_is_the_last_thing_that_a_client_gets() -> None:
    frame = sse.render({"error": {"message": "m", "code": "data_inspection_failed"}})
    world = World(MORE, frame)

    out = world.run()

    assert out[:-1] == [TEXT, MORE]
    assert error_in(out[-1])["code"] == "understood"
    assert world.broken
    assert world.record.outcome == "upstream_error"
    assert world.record.error_code == "understood"
    assert [error.code for error in world.late] == ["understood"]


@pytest.mark.parametrize(
    "event",
    [
        b'event: error\ndata: {"code":"Throttling","message":"m"}\n\n',
        chunk({"content": "Throttling: m"}, "error_finish"),
    ],
    ids=["native", "as a finish"],
)
@pytest.mark.parametrize("together", [True, False])
def test_an_error_that_no_client_understands_is_told_as_what_it_means(
    event: bytes, together: bool
) -> None:
    world = World(MORE + event) if together else World(MORE, event)

    out = world.run()

    assert out[:-1] == [TEXT, MORE]
    assert error_in(out[-1])["code"] == "understood"
    assert world.broken


def test_an_error_right_behind_the_first_event_is_told() -> None:
    frame = sse.render({"error": {"message": "m"}})

    first, last = World(MORE, first=TEXT + frame).run()

    assert (first, error_in(last)["code"]) == (TEXT, "understood")


def test_a_failure_before_the_first_event_is_nothing_late() -> None:
    world = World()

    def fail() -> OpenStream:
        raise UpstreamError("no")

    world.opening = fail
    world.run()

    assert (world.record.outcome, world.late) == ("upstream_error", [])


def test_after_an_error_frame_nothing_more_is_carried() -> None:
    """An SDK has raised its error by then, and the upstream may keep the connection open."""
    frame = sse.render({"error": {"message": "m", "code": "x"}})

    first, last = World(frame, 60.0, MORE).run()

    assert (first, error_in(last)["code"]) == (TEXT, "understood")


def test_a_fault_of_ours_is_told_without_its_words() -> None:
    world = World(RuntimeError("secret of ours"))

    out = world.run()

    assert error_in(out[-1])["code"] == "internal_error"
    assert b"secret of ours" not in b"".join(out)
    assert world.broken
    assert world.record.outcome == "failed"


# --- keep-alives ---------------------------------------------------------------------------------


def test_silence_is_filled_with_comments() -> None:
    world = World(14.0, MORE, 31.0, FINISH, 14.0)

    assert world.run() == [TEXT, MORE, KEEP_ALIVE, KEEP_ALIVE, FINISH, sse.DONE]


def test_silence_may_be_filled_with_chunks_that_say_nothing() -> None:
    out = World(16.0, FINISH, QWEN_PROXY_KEEPALIVE="chunk").run()

    value = sse.parse(out[1].strip())
    assert value["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert (value["id"], value["model"]) == ("chatcmpl-1", "m")
    assert len(out) == 4


def test_silence_stays_silence_when_keep_alives_are_off() -> None:
    assert World(50.0, FINISH, QWEN_PROXY_KEEPALIVE="off").run() == [TEXT, FINISH, sse.DONE]


def test_events_that_a_client_does_not_get_do_not_count_as_words_to_it() -> None:
    """An upstream's own comments every ten seconds are taken out; ours must come instead."""
    comment = b": upstream\n\n"
    world = World(10.0, comment, 10.0, comment, 10.0, comment, FINISH)

    out = world.run()

    assert out.count(KEEP_ALIVE) >= 1
    assert comment not in out


def test_comments_of_the_upstream_count_against_its_silence() -> None:
    """It lives: that is what idle means."""
    steps = [step for _ in range(9) for step in (60.0, b": alive\n\n")]

    assert World(*steps, FINISH).run()[-1] == sse.DONE


def test_signs_of_life_alone_are_silence_after_the_first_bytes_timeout() -> None:
    """A gateway whose model has died may send comments for ever."""
    steps: list[Step] = [b": heartbeat\n\n", 20.0]
    world = World(*steps * 40, QWEN_PROXY_FIRST_BYTE_TIMEOUT=300)
    began = world.clock.monotonic()

    out = world.run()

    assert world.broken
    error = error_in(out[-1])
    assert error["code"] == "upstream_timeout"
    assert "300 s" in error["message"]
    assert 300 <= world.clock.monotonic() - began < 330


def test_the_idle_timeout_may_be_shorter_than_the_keep_alive_interval() -> None:
    world = World(5.0, FINISH, QWEN_PROXY_IDLE_TIMEOUT=3)

    assert error_in(world.run()[-1])["code"] == "upstream_timeout"


# --- events that are not yielded ------------------------------------------------------------------


def test_events_like_the_last_one_are_passed_and_count_all_the_same(passes: bool) -> None:
    odd = chunk({"content": 'a "quoted\\" word\n'})
    world = World(MORE, 3.0, odd, MORE + odd, b": alive\n\n", 2.0, MORE, FINISH, sse.DONE)

    assert b"".join(world.run()) == b"".join((TEXT, MORE, odd, MORE, odd, MORE, FINISH, sse.DONE))

    # Two events in one chunk, as no host sends them, are looked at by `feed`; so is the first one.
    assert world.passed == ([odd, MORE] if passes else [])
    record = world.record
    assert (record.received_events, record.longest_gap_s) == (8, 3.0)
    assert (
        record.received_bytes == sum(map(len, (MORE, odd, MORE, odd, MORE, FINISH, sse.DONE))) + 9
    )


def test_what_the_client_cannot_take_at_once_is_yielded(passes: bool) -> None:
    world = World(MORE, TEXT, MORE, FINISH)
    world.send = lambda events: False  # type: ignore[method-assign]  # as a client that does so

    assert world.run() == [TEXT, MORE, TEXT, MORE, FINISH, sse.DONE]
    assert world.record.received_events == 4


def test_after_a_part_was_sent_the_server_gets_its_turn_to_send_the_rest(passes: bool) -> None:
    """A piece without bytes is what it gets, at once."""
    if not passes:
        return
    world = World(MORE, TEXT, 14.0, FINISH)
    began = world.clock.monotonic()
    turns: list[float] = []

    def send_a_part(events: bytes) -> bool:
        raise TimeoutError

    world.send = send_a_part  # type: ignore[method-assign]  # as a client that does so
    for block in world.relay:
        if not block:
            turns.append(world.clock.monotonic() - began)
    world.relay.close()

    assert turns == [0.0]
    assert world.record.outcome == "complete"


def test_silence_begins_with_the_last_event_that_was_passed() -> None:
    world = World(10.0, MORE, 10.0, MORE, 15.5, FINISH)

    assert world.run() == [TEXT, MORE, MORE, KEEP_ALIVE, FINISH, sse.DONE]


def test_an_event_that_was_passed_is_the_last_sign_of_life() -> None:
    world = World(60.0, MORE, 60.0, MORE, 101.0, FINISH, QWEN_PROXY_KEEPALIVE="off")
    began = world.clock.monotonic()

    assert error_in(world.run()[-1])["code"] == "upstream_timeout"
    assert world.clock.monotonic() - began == pytest.approx(220, abs=0.1)


# --- before the first event ----------------------------------------------------------------------


def slowly(world: World, *, beats: int) -> None:
    """The stream opens after so many slices of waiting. Real time, and little of it."""

    def open_late() -> OpenStream:
        gevent.sleep(0.02 * beats)
        return world.stream

    world.opening = open_late


FAST: dict[str, Any] = {"QWEN_PROXY_KEEPALIVE_INTERVAL": 0.02}


def test_a_failure_before_the_first_event_is_raised_to_be_answered_with_its_status() -> None:
    world = World()

    def fail() -> OpenStream:
        raise UpstreamError("no", status=429, code="limit_requests")

    world.opening = fail
    with pytest.raises(ApiError) as caught:
        world.relay.wait_first()
    world.relay.close()

    assert caught.value.status == 429
    assert world.record.outcome == "upstream_error"


def test_when_the_first_event_takes_long_keep_alives_begin_at_once() -> None:
    world = World(FINISH, **FAST)
    slowly(world, beats=4)

    assert not world.relay.wait_first()
    out = world.run()

    beats = len(out) - 3
    assert out == [KEEP_ALIVE] * beats + [TEXT, FINISH, sse.DONE]
    assert beats >= 2


def test_a_failure_after_keep_alives_is_an_error_event() -> None:
    world = World(**FAST)

    def fail() -> OpenStream:
        gevent.sleep(0.05)
        raise UpstreamTimeout("gave up", code="upstream_timeout")

    world.opening = fail
    assert not world.relay.wait_first()
    out = world.run()

    assert out[0] == KEEP_ALIVE
    assert error_in(out[-1])["code"] == "upstream_timeout"
    assert world.broken
    assert world.record.outcome == "upstream_error"


def test_without_keep_alives_the_first_event_is_waited_for() -> None:
    world = World(FINISH, QWEN_PROXY_KEEPALIVE="off", **FAST)
    slowly(world, beats=4)

    assert world.relay.wait_first()
    assert world.run() == [TEXT, FINISH, sse.DONE]


# --- the client goes away ------------------------------------------------------------------------


def test_a_client_that_leaves_in_the_middle_closes_the_upstream() -> None:
    world = World(MORE, FINISH)
    world.relay.wait_first()
    body = iter(world.relay)
    assert next(body) == TEXT

    body.close()  # type: ignore[attr-defined]  # it is a generator
    world.relay.close()

    assert world.reader.closed >= 1
    assert world.record.outcome == "client_gone"


def test_a_client_that_leaves_before_anything_was_sent_closes_the_upstream() -> None:
    world = World(FINISH)
    world.relay.wait_first()

    world.relay.close()

    assert world.reader.closed >= 1
    assert world.record.outcome == "client_gone"


def test_a_client_that_leaves_during_the_wait_stops_the_opening() -> None:
    world = World(**FAST)
    stopped = []

    def open_for_ever() -> OpenStream:
        try:
            gevent.sleep(10)
        except gevent.GreenletExit:
            stopped.append(True)
            raise
        return world.stream

    world.opening = open_for_ever
    assert not world.relay.wait_first()

    world.relay.close()
    gevent.sleep(0)

    assert stopped == [True]
    assert world.record.outcome == "client_gone"


def test_a_stream_that_opens_in_the_moment_of_leaving_is_closed_all_the_same() -> None:
    """The task ended, but nobody took its result."""
    world = World(FINISH, **FAST)
    slowly(world, beats=10)
    assert not world.relay.wait_first()
    gevent.sleep(0.5)

    world.relay.close()

    assert world.reader.closed == 1


def test_closing_again_is_harmless_and_keeps_the_outcome() -> None:
    world = World(FINISH)
    world.run()

    world.relay.close()
    world.relay.close()

    assert world.record.outcome == "complete"
