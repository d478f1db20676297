"""Questions between the processes of a box: who answers, who is silent, and who is gone."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.protocol.json_object import encoded
from qwen_wsgi.state import worker_sockets
from qwen_wsgi.state.worker_sockets import DIRECTORY, Asked, WorkerSocket, ask_others
from qwen_wsgi.state.workers import this_worker
from tests.kit.servers import wait_until


def name_of(pid: int) -> str:
    """The name of another process."""
    boot, namespace, _, started = this_worker().split("/")
    return f"{boot}/{namespace}/{pid}/{started}"


@contextmanager
def answering(directory: Path, pid: int, answer: Any) -> Iterator[WorkerSocket]:
    """A socket as another process has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_sockets, "this_worker", lambda: name_of(pid))
        made = WorkerSocket(directory, answer)
        made.start()
    try:
        yield made
    finally:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_sockets, "this_worker", lambda: name_of(pid))
            made.close()


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / DIRECTORY))


def test_all_others_answer_each_for_itself(tmp_path: Path) -> None:
    heard = []

    def first(question: Any) -> Any:
        heard.append(question)
        return {"of": 1}

    with (
        answering(tmp_path, 1, first),
        answering(tmp_path, 2, lambda question: [question["x"]]),
        answering(tmp_path, os.getpid(), lambda question: "itself"),
    ):
        assert ask_others(tmp_path, {"x": "é"}) == Asked(({"of": 1}, ["é"]), 0)
        assert len(files(tmp_path)) == 3
    assert heard == [{"x": "é"}]
    assert files(tmp_path) == []
    assert ask_others(tmp_path, {}) == Asked((), 0)


def test_only_the_servers_user_may_ask(tmp_path: Path) -> None:
    with answering(tmp_path, 1, lambda question: 1):
        place = tmp_path / DIRECTORY
        assert place.stat().st_mode & 0o777 == 0o700
        assert [path.stat().st_mode & 0o777 for path in place.iterdir()] == [0o600]


def test_a_path_may_be_longer_than_the_address_of_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200)
    with answering(deep, 1, lambda question: 1):
        assert ask_others(deep, {}) == Asked((1,), 0)


def test_the_socket_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    with answering(tmp_path, 1, lambda question: 1):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / DIRECTORY / "9-dead.sock"))
        assert ask_others(tmp_path, {}) == Asked((1,), 0)
        assert len(files(tmp_path)) == 1


def test_one_that_does_not_answer_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_sockets, "ANSWER_S", 0.05)
    with answering(tmp_path, 1, lambda question: 1), socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / DIRECTORY / "9-stuck.sock"))
        stuck.listen()
        assert ask_others(tmp_path, {}) == Asked((1,), 1)
    assert ask_others(None, {}) == Asked((), 0)
    assert ask_others(tmp_path / "nothing", {}) == Asked((), 0)


@pytest.mark.parametrize("answer", [b"", b"[1", b"x" * 300])
def test_what_is_no_answer_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(worker_sockets, "_LARGEST_ANSWER", 200)
    (tmp_path / DIRECTORY).mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / DIRECTORY / "9-odd.sock"))
        listener.listen()

        def serve() -> None:
            asking, _ = listener.accept()
            with asking:
                asking.recv(1000)
                asking.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert ask_others(tmp_path, {}) == Asked((), 1)
        thread.join()


def test_questions_that_cannot_be_answered_end_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(question: Any) -> Any:
        if question == "wrong":
            raise KeyError(question)
        return question

    with answering(tmp_path, 1, fail):
        (path,) = (tmp_path / DIRECTORY).iterdir()
        for question in (b"", b"{", b"x" * 5000, encoded("wrong")):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(path))
                asking.sendall(question)
                asking.shutdown(socket.SHUT_WR)
                assert asking.recv(10) == b""
        assert ask_others(tmp_path, {"right": 1}) == Asked(({"right": 1},), 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_without_a_place_a_worker_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DIRECTORY).write_text("in the way")
    with answering(tmp_path, 1, lambda question: 1):
        assert ask_others(tmp_path, {}) == Asked((), 1)
    assert "other workers cannot ask this one" in caplog.text
    assert "workers cannot be asked" in caplog.text
    caplog.clear()
    with answering(tmp_path / "none", 1, lambda question: 1):
        pass
    with caplog.at_level(logging.INFO):
        nobody = WorkerSocket(None, lambda question: 1)
        nobody.start()
        nobody.close()
    assert caplog.text == ""


def test_a_failed_accept_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_sockets, "_PAUSE_S", 0.01)
    failures = [OSError(24, "Too many open files")]
    real = socket.socket.accept

    def accept(self: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with answering(tmp_path, 1, lambda question: 1):
        wait_until(lambda: not failures, "the first accept")
        assert ask_others(tmp_path, {}) == Asked((1,), 0)
