"""What workers tell each other about accounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_wsgi.upstream.routing.cooldown import (
    BREAKS_AT,
    LONGEST_OPEN_S,
    LONGEST_PAUSE_S,
    OPEN_S,
    PAUSE_S,
    PROBE_S,
    VISIT_S,
    Board,
    key_of,
)
from tests.fakes.clock import FakeClock
from tests.kit.privileges import as_ordinary_user

KEY = key_of("account", "model")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def board(clock: FakeClock) -> Board:
    return Board(None, boottime=clock.monotonic)


class TestTroubles:
    def test_nothing_is_noted_at_first(self, board: Board) -> None:
        assert (board.blocked_s(KEY), board.cause(KEY), board.failures(KEY)) == (0.0, "", 0)
        board.answered(KEY)
        board.probing(KEY)
        assert board.blocked_s(KEY) == 0.0

    def test_a_named_pause_ends_by_itself(self, board: Board, clock: FakeClock) -> None:
        assert board.leave_alone(KEY, 7, "throttled") == 7
        clock.advance(6.9)
        assert board.blocked_s(KEY) == pytest.approx(0.1)
        assert board.cause(KEY) == "throttled"
        clock.advance(0.2)
        assert board.blocked_s(KEY) == 0.0
        assert board.blocked_s(key_of("another")) == 0.0

    def test_a_shorter_pause_does_not_end_a_longer_one(self, board: Board) -> None:
        board.leave_alone(KEY, 50, "plan_window_spent")
        assert board.leave_alone(KEY, 2, "throttled") == 50

    def test_pauses_without_a_name_double(self, board: Board, clock: FakeClock) -> None:
        pauses = []
        for _ in range(9):
            pauses.append(board.leave_alone(KEY, None, "throttled"))
            clock.advance(pauses[-1] + 1)
        assert pauses[:4] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, 8 * PAUSE_S]
        assert pauses[-1] == LONGEST_PAUSE_S
        clock.advance(1000)
        assert board.leave_alone(KEY, None, "throttled") == PAUSE_S, "that was another time"
        board.leave_alone(KEY, None, "throttled")
        board.answered(KEY)
        assert board.leave_alone(KEY, None, "throttled") == PAUSE_S, "it worked meanwhile"

    def test_repeated_failures_open_the_circuit(self, board: Board, clock: FakeClock) -> None:
        for _ in range(BREAKS_AT - 1):
            assert board.failed(KEY, "timeout") == 0.0
        assert board.blocked_s(KEY) == 0.0
        assert board.failed(KEY, "timeout") == OPEN_S
        assert board.blocked_s(KEY) == OPEN_S

        clock.advance(OPEN_S)
        assert board.blocked_s(KEY) == 0.0, "half open: one may ask"
        board.probing(KEY)
        assert board.blocked_s(KEY) == PROBE_S, "and the others wait for its answer"
        assert board.failed(KEY, "timeout") == 2 * OPEN_S
        clock.advance(2 * OPEN_S)
        board.probing(KEY)
        board.answered(KEY)
        assert (board.blocked_s(KEY), board.failures(KEY)) == (0.0, 0)

    def test_an_open_circuit_is_probed_now_and_then(self, board: Board, clock: FakeClock) -> None:
        opened = 0.0
        for _ in range(30):
            opened = board.failed(KEY, "timeout")
            clock.advance(opened)
        assert opened == LONGEST_OPEN_S

    def test_failures_far_apart_are_no_row(self, board: Board, clock: FakeClock) -> None:
        for _ in range(3 * BREAKS_AT):
            assert board.failed(KEY, "timeout") == 0.0
            clock.advance(200)

    @settings(deadline=None, max_examples=30)
    @given(names=st.lists(st.text(max_size=8), min_size=1, max_size=2000, unique=True))
    def test_however_many_there_are_the_latest_is_known(self, names: list[str]) -> None:
        clock = FakeClock()
        board = Board(None, boottime=clock.monotonic)
        for name in names:
            clock.advance(0.001)
            board.leave_alone(key_of(name), 100, "throttled")
            assert board.blocked_s(key_of(name)) == pytest.approx(100)


class TestConversations:
    def test_they_are_remembered_for_a_while(self, board: Board, clock: FakeClock) -> None:
        talk, account = key_of("talk"), key_of("a")
        assert board.visited(talk) is None
        board.visit(talk, account)
        clock.advance(VISIT_S - 1)
        assert board.visited(talk) == account
        board.visit(talk, key_of("b"))
        assert board.visited(talk) == key_of("b")
        clock.advance(VISIT_S)
        assert board.visited(talk) is None

    def test_the_oldest_makes_room(self, board: Board, clock: FakeClock) -> None:
        for number in range(20_000):
            clock.advance(0.001)
            board.visit(key_of(str(number)), key_of("a"))
        known = sum(board.visited(key_of(str(n))) is not None for n in range(19_000, 20_000))
        assert known > 900


class TestFile:
    def test_workers_share_it(self, tmp_path: Path) -> None:
        one = Board(tmp_path / "state")
        one.leave_alone(KEY, 60, "throttled")
        program = (
            "import sys; from pathlib import Path\n"
            "from qwen_wsgi.upstream.routing.cooldown import *\n"
            "board = Board(Path(sys.argv[1]))\n"
            "print(board.blocked_s(key_of('account', 'model')) > 50)\n"
            "board.visit(key_of('talk'), key_of('me'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "state")],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert done.stdout == "True\n"
        assert one.visited(key_of("talk")) == key_of("me")

    def test_workers_that_begin_together_have_the_same_one(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path\n"
            "from qwen_wsgi.upstream.routing.cooldown import *\n"
            "sys.stdin.readline()\n"
            "board = Board(Path(sys.argv[1]))\n"
            "board.leave_alone(key_of(sys.argv[2]), 600, 'x')"
        )
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path / "state"), str(number)],
                stdin=subprocess.PIPE,
            )
            for number in range(6)
        ]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"\n")
            worker.stdin.close()
        assert [worker.wait(30) for worker in workers] == [0] * 6
        board = Board(tmp_path / "state")
        assert all(board.blocked_s(key_of(str(number))) > 0 for number in range(6))
        assert [path.name[:6] for path in (tmp_path / "state").iterdir()] == ["board-"]

    def test_another_boot_begins_anew(self, tmp_path: Path) -> None:
        Board(tmp_path / "state", boot_id="one").leave_alone(KEY, 600, "throttled")
        assert Board(tmp_path / "state", boot_id="one").blocked_s(KEY) > 0
        assert Board(tmp_path / "state", boot_id="two").blocked_s(KEY) == 0
        assert len(list((tmp_path / "state").iterdir())) == 1

    def test_it_is_private_and_holds_no_names(self, tmp_path: Path) -> None:
        board = Board(tmp_path / "state")
        board.leave_alone(key_of("sk-secret", "model"), 60, "throttled")
        (path,) = (tmp_path / "state").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"secret" not in path.read_bytes()

    def test_without_a_place_to_write_each_worker_has_its_own(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = tmp_path / "state"
        state.mkdir()
        with as_ordinary_user(state):
            state.chmod(0o500)
            board = Board(state)
            state.chmod(0o700)
        board.leave_alone(KEY, 60, "throttled")
        assert board.blocked_s(KEY) > 0
        assert "workers cannot share" in caplog.text

    def test_a_full_disk_is_no_crash(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
        board = Board(tmp_path / "state")
        board.leave_alone(KEY, 60, "throttled")
        assert board.blocked_s(KEY) > 0
        assert "No space left" in caplog.text
        assert list((tmp_path / "state").iterdir()) == []
