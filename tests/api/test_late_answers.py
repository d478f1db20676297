"""Answers whose head was sent before they failed: what the client gets, and what is recorded."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api.late_answers import Carried, LateJson
from qwen_wsgi.errors import ApiError, BadRequest, ClientGone, StreamBroken, UpstreamError
from tests.fakes.upstream import settings_of

#: The failure, its outcome and its code.
FAILURES = [
    (lambda: UpstreamError("x", code="upstream_broken"), "upstream_error", "upstream_broken"),
    (lambda: BadRequest("x", code="wrong"), "refused", "wrong"),
    (lambda: RuntimeError("made by the test"), "failed", "internal_error"),
    (lambda: OSError(errno.EMFILE, "no files"), "failed", "proxy_out_of_files"),
    (lambda: SystemExit(0), "cut_by_stop", "proxy_stopping"),
]
failures = pytest.mark.parametrize(("failure", "outcome", "code"), FAILURES)
Failure = Callable[[], BaseException]


@pytest.fixture
def record() -> CallRecord:
    return CallRecord(request_id="req-1")


def broken(failure: Failure) -> Iterator[bytes]:
    yield b"begin"
    raise failure()


def told(error: ApiError) -> bytes:
    return (error.code or "").encode()


@failures
def test_a_body_that_fails_is_cut(
    record: CallRecord, failure: Failure, outcome: str, code: str
) -> None:
    body = iter(Carried(broken(failure), record, lambda: None))

    assert next(body) == b"begin"
    with pytest.raises(StreamBroken):
        next(body)
    assert (record.outcome, record.error_code) == (outcome, code)


@failures
def test_the_last_words_of_a_body_name_the_failure(
    record: CallRecord, failure: Failure, outcome: str, code: str
) -> None:
    body = iter(Carried(broken(failure), record, lambda: None, last_words=told))

    assert (next(body), next(body)) == (b"begin", code.encode())
    with pytest.raises(StreamBroken):
        next(body)


def test_a_whole_body(record: CallRecord) -> None:
    assert list(Carried(iter([b"a", b"b"]), record, lambda: None)) == [b"a", b"b"]
    assert record.outcome == "complete"


def test_nothing_is_told_to_a_client_that_is_gone(record: CallRecord) -> None:
    closed = []
    body = Carried(broken(ClientGone), record, lambda: closed.append(1), last_words=told)

    with pytest.raises(ClientGone):
        list(body)
    body.close()
    assert (record.outcome, closed) == ("client_gone", [1])


def late_json(work: Callable[[], None], record: CallRecord) -> LateJson:
    """The body of an answer that has begun."""
    late = LateJson(work, settings=settings_of(QWEN_PROXY_KEEPALIVE_INTERVAL="0.01"), record=record)
    body = late.response().response
    assert body is late
    return late


@pytest.mark.parametrize(("failure", "outcome", "code"), FAILURES[:-1])
def test_json_that_fails_late(
    record: CallRecord, failure: Failure, outcome: str, code: str
) -> None:
    def work() -> None:
        gevent.sleep(0.05)
        raise failure()

    *silence, last = late_json(work, record)
    assert set(silence) == {b"\n"}
    assert json.loads(last)["error"]["code"] == code
    assert (record.outcome, record.error_code) == (outcome, code)


def test_json_that_a_stop_cuts_off(record: CallRecord) -> None:
    """gunicorn raises SystemExit in the greenlet that sends the answer, wherever it is."""
    late = late_json(lambda: gevent.sleep(60), record)
    body: Any = iter(late)

    assert next(body) == b"\n"
    assert json.loads(body.throw(SystemExit()))["error"]["code"] == "proxy_stopping"
    assert list(body) == []
    late.close()
    assert (record.outcome, record.error_code) == ("cut_by_stop", "proxy_stopping")


def test_a_fault_names_the_id_to_ask_about(
    record: CallRecord, caplog: pytest.LogCaptureFixture
) -> None:
    def words(error: ApiError) -> bytes:
        return error.message.encode()

    failed = broken(lambda: RuntimeError("made by the test"))
    body = iter(Carried(failed, record, lambda: None, last_words=words))

    assert (next(body), b"req-1" in next(body)) == (b"begin", True)
    assert "made by the test" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_late_json_is_recorded_before_it_is_sent(record: CallRecord, fails: bool) -> None:
    def work() -> str:
        gevent.sleep(0.05)
        if fails:
            raise UpstreamError("x", code="upstream_broken")
        return "made"

    written: list[str] = []
    late = LateJson(
        work,
        settings=settings_of(QWEN_PROXY_KEEPALIVE_INTERVAL="0.01"),
        record=record,
        write_record=lambda: written.append(record.outcome),
    )
    late.response()
    for piece in late:
        assert bool(written) == bool(piece.strip())
    late.close()

    assert written == ["upstream_error" if fails else "complete"]


@pytest.mark.parametrize("holds", [False, True])
def test_a_body_is_recorded_before_its_end(record: CallRecord, holds: bool) -> None:
    written: list[str] = []
    body = Carried(
        iter([b"a", b"b", b"c"]),
        record,
        lambda: None,
        write_record=lambda: written.append(record.outcome),
        holds=holds,
    )

    found = [(piece, list(written)) for piece in body]

    assert b"".join(piece for piece, _ in found) == b"abc"
    # With a length the last piece is the end; without one an empty chunk comes after it.
    assert [len(before) for _, before in found] == [0, 0, int(holds)]
    assert written == ["complete"]
    assert b"".join(Carried(iter([]), record, lambda: None, holds=True)) == b""


@pytest.mark.parametrize("holds", [False, True])
def test_a_body_that_fails_is_recorded_before_its_last_words(
    record: CallRecord, holds: bool
) -> None:
    written: list[str] = []
    body = iter(
        Carried(
            broken(lambda: BadRequest("x", code="wrong")),
            record,
            lambda: None,
            last_words=told,
            write_record=lambda: written.append(record.outcome),
            holds=holds,
        )
    )

    assert holds or next(body) == b"begin"
    assert (next(body), written) == (b"beginwrong" if holds else b"wrong", ["refused"])
