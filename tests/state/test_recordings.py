"""Orders to record calls, and the places that workers take."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from qwen_wsgi.redaction import Redaction
from qwen_wsgi.state import recordings as module
from qwen_wsgi.state.recordings import LOOK_EVERY_S, Recording, Recordings, read
from tests.fakes.clock import FakeClock
from tests.kit.secrets import core, secret

KEY = secret("recorded")
REQUEST = {"method": "POST", "path": "/v1/x", "headers": {"a": "b"}, "body": {"model": "m"}}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def command(tmp_path: Path, clock: FakeClock) -> Recordings:
    return Recordings(tmp_path / "recordings", clock)


@pytest.fixture
def worker(tmp_path: Path, clock: FakeClock) -> Recordings:
    return Recordings(tmp_path / "recordings", clock)


def test_so_many_calls_of_one_client_are_recorded(
    command: Recordings, worker: Recordings, clock: FakeClock
) -> None:
    assert worker.begin("anna") is None
    order = command.order("anna", 3, 10)
    clock.advance(LOOK_EVERY_S)
    found = [worker.begin(client) for client in ("anna", "ben", "anna", "local", "anna", "anna")]

    assert [path is not None for path in found] == [True, False, True, False, True, False]
    assert [path for path in found if path] == command.files(order) == command.files()


def test_all_workers_together_record_no_more(
    command: Recordings, tmp_path: Path, clock: FakeClock
) -> None:
    command.order("anna", 5, 10)
    workers = [Recordings(tmp_path / "recordings", clock) for _ in range(3)]

    found = [worker.begin("anna") for _ in range(5) for worker in workers]
    assert len([path for path in found if path]) == len({path for path in found if path}) == 5


def test_an_order_ends_with_its_time(
    command: Recordings, worker: Recordings, clock: FakeClock
) -> None:
    command.order("anna", 3, 1)
    assert worker.begin("anna")
    clock.advance(60)
    assert worker.begin("anna") is None
    assert command.orders() == []


def test_an_order_that_is_taken_back_ends_at_once(command: Recordings, worker: Recordings) -> None:
    command.order("anna", 3, 1)
    assert worker.begin("anna")
    assert command.stop() == 1
    assert worker.begin("anna") is None
    assert len(command.files()) == 1
    assert command.stop() == 0


def test_nobody_else_can_read_the_files(command: Recordings, worker: Recordings) -> None:
    command.order("anna", 3, 1)
    worker.begin("anna")
    assert command.directory is not None

    assert stat.S_IMODE(command.directory.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in command.directory.iterdir()}
    assert modes == {0o600}


def test_what_is_no_order_is_none(command: Recordings, worker: Recordings) -> None:
    command.order("anna", 3, 1)
    assert command.directory is not None
    for number, text in enumerate(("", "[]", '{"id": 1}', "\udcff")):
        path = command.directory / f"order-{number}.json"
        path.write_bytes(text.encode(errors="surrogateescape"))

    assert len(command.orders()) == 1
    assert worker.begin("anna")


def test_without_a_directory_nothing_is_recorded(clock: FakeClock) -> None:
    alone = Recordings(None, clock)

    assert (alone.begin("local"), alone.files(), alone.orders()) == (None, [], [])


def test_a_place_that_cannot_be_taken_is_told(
    command: Recordings,
    worker: Recordings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command.order("anna", 3, 1)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_create", full)
    with caplog.at_level(logging.WARNING, module.__name__):
        assert worker.begin("anna") is None
    assert "No space left" in caplog.text


def recorded(path: Path, *pieces: bytes) -> Recording:
    recording = Recording(path, Redaction([KEY]).redact, REQUEST)
    recording.begin_answer(200, {"content-type": "text/plain"})
    recording.keep(pieces)
    return recording


def test_a_recording_has_what_was_asked_and_answered(tmp_path: Path) -> None:
    path = tmp_path / "call"
    recorded(path, b"one ", "zwö".encode()).write({"account": "a"})

    found = read(path)
    assert found == {
        "version": 1,
        "call": {"account": "a"},
        "request": REQUEST,
        "response": {
            "status": 200,
            "headers": {"content-type": "text/plain"},
            "body": "one zwö",
            "whole": True,
        },
    }


def test_secrets_are_masked_wherever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "call"
    quoted = json.dumps({"echo": f"key {KEY}"})
    request = {**REQUEST, "headers": {"x-other": KEY}, "body": {"a": [f"my {KEY}", {KEY: 1}]}}
    recording = Recording(path, Redaction([KEY]).redact, request)
    # In two pieces, so that neither holds all of it.
    half = len(quoted) // 2
    list(recording.passing([quoted[:half].encode(), quoted[half:].encode()]))
    recording.write({"error": f"Bearer {KEY}"})

    assert core(KEY) not in path.read_text()
    assert read(path) is not None


def test_an_answer_is_passed_on_as_it_comes_and_closed(tmp_path: Path) -> None:
    closed = []

    def pieces() -> object:
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    recording = Recording(tmp_path / "call", str, REQUEST)
    passing = recording.passing(pieces())  # type: ignore[arg-type]  # of bytes
    assert next(passing) == b"one"
    passing.close()  # type: ignore[attr-defined]  # a generator
    assert closed == [True]
    recording.write({})
    found = read(tmp_path / "call")
    assert found is not None and found["response"]["body"] == "one"


def test_a_large_answer_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 5)
    recorded(tmp_path / "call", b"1234", b"5678", b"9").write({})

    found = read(tmp_path / "call")
    assert found is not None
    assert (found["response"]["body"], found["response"]["whole"]) == ("12345", False)


def test_a_recording_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, module.__name__):
        recorded(tmp_path / "gone" / "call").write({})
    assert "could not be recorded" in caplog.text


def test_a_body_that_is_nested_too_deep_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    recording = Recording(tmp_path / "call", str, {**REQUEST, "body": deep})
    with caplog.at_level(logging.WARNING, module.__name__):
        recording.write({})
    assert "could not be recorded" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "request": {"path": 1}}', "x" * 9]
)
def test_what_is_no_recording_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)

    assert read(tmp_path / "file") is None
