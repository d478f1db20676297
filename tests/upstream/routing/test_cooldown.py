"""What workers tell each other about accounts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.state.shared_files import SharedFiles, key_of
from qwen_wsgi.upstream.routing.cooldown import (
    BREAKS_AT,
    BROKEN,
    DOUBTED,
    PROBE_S,
    THROTTLED,
    Cooldowns,
)
from tests.fakes.clock import FakeClock
from tests.kit.privileges import as_ordinary_user
from tests.kit.properties import examples

KEY = key_of("account", "model")
OTHER = key_of("another")
COOLDOWN_S, LONGEST_COOLDOWN_S = THROTTLED.first_s, THROTTLED.longest_s
OPEN_S, LONGEST_OPEN_S = BROKEN.first_s, BROKEN.longest_s


def evidence(conversation: str, request: str) -> bytes:
    return key_of(conversation)[:4] + key_of(request)[:4]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cooldowns(clock: FakeClock) -> Cooldowns:
    return Cooldowns(None, boottime=clock.monotonic)


class TestCooldowns:
    def test_nothing_is_noted_at_first(self, cooldowns: Cooldowns) -> None:
        assert (cooldowns.remaining_s(KEY), cooldowns.cause(KEY), cooldowns.failures(KEY)) == (
            0.0,
            "",
            0,
        )
        cooldowns.clear(KEY)
        cooldowns.begin_probe(KEY)
        assert cooldowns.remaining_s(KEY) == 0.0

    def test_a_named_pause_ends_by_itself(self, cooldowns: Cooldowns, clock: FakeClock) -> None:
        assert cooldowns.set_cooldown(KEY, 7, "throttled") == 7
        clock.advance(6.9)
        assert cooldowns.remaining_s(KEY) == pytest.approx(0.1)
        assert cooldowns.cause(KEY) == "throttled"
        clock.advance(0.2)
        assert cooldowns.remaining_s(KEY) == 0.0
        assert cooldowns.remaining_s(key_of("another")) == 0.0

    def test_a_shorter_pause_does_not_end_a_longer_one(self, cooldowns: Cooldowns) -> None:
        cooldowns.set_cooldown(KEY, 50, "plan_window_spent")
        assert cooldowns.set_cooldown(KEY, 2, "throttled") == 0.0
        assert cooldowns.remaining_s(KEY) == 50

    def test_pauses_without_a_name_double(self, cooldowns: Cooldowns, clock: FakeClock) -> None:
        pauses = []
        for _ in range(9):
            pauses.append(cooldowns.set_cooldown(KEY, None, "throttled"))
            clock.advance(pauses[-1] + 1)
        assert pauses[:4] == [COOLDOWN_S, 2 * COOLDOWN_S, 4 * COOLDOWN_S, 8 * COOLDOWN_S]
        assert pauses[-1] == LONGEST_COOLDOWN_S
        clock.advance(1000)
        assert cooldowns.set_cooldown(KEY, None, "throttled") == COOLDOWN_S, "that was another time"
        cooldowns.set_cooldown(KEY, None, "throttled")
        cooldowns.clear(KEY)
        assert cooldowns.set_cooldown(KEY, None, "throttled") == COOLDOWN_S, "it worked meanwhile"

    def test_repeated_failures_open_the_circuit(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        for _ in range(BREAKS_AT - 1):
            assert cooldowns.record_failure(KEY, "timeout") == 0.0
        assert cooldowns.remaining_s(KEY) == 0.0
        assert cooldowns.record_failure(KEY, "timeout") == OPEN_S
        assert cooldowns.remaining_s(KEY) == OPEN_S

        clock.advance(OPEN_S)
        assert cooldowns.remaining_s(KEY) == 0.0, "half open: one may ask"
        cooldowns.begin_probe(KEY)
        assert cooldowns.remaining_s(KEY) == PROBE_S, "and the others wait for its answer"
        assert cooldowns.record_failure(KEY, "timeout") == 2 * OPEN_S
        clock.advance(2 * OPEN_S)
        cooldowns.begin_probe(KEY)
        cooldowns.clear(KEY)
        assert (cooldowns.remaining_s(KEY), cooldowns.failures(KEY)) == (0.0, 0)

    def test_an_open_circuit_is_probed_now_and_then(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        opened = 0.0
        for _ in range(30):
            opened = cooldowns.record_failure(KEY, "timeout")
            clock.advance(opened)
        assert opened == LONGEST_OPEN_S == 120

    def test_failures_far_apart_are_no_row(self, cooldowns: Cooldowns, clock: FakeClock) -> None:
        for _ in range(3 * BREAKS_AT):
            assert cooldowns.record_failure(KEY, "timeout") == 0.0
            clock.advance(200)

    @examples(30)
    @given(names=st.lists(st.text(max_size=8), min_size=1, max_size=2000, unique=True))
    def test_however_many_there_are_the_latest_is_known(self, names: list[str]) -> None:
        clock = FakeClock()
        cooldowns = Cooldowns(None, boottime=clock.monotonic)
        for name in names:
            clock.advance(0.001)
            cooldowns.set_cooldown(key_of(name), 100, "throttled")
            assert cooldowns.remaining_s(key_of(name)) == pytest.approx(100)


class TestIncidents:
    def test_twelve_throttles_at_a_time_are_one(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        began = clock.monotonic()
        clock.advance(0.2)
        pauses = [cooldowns.set_cooldown(KEY, None, "throttled", began=began) for _ in range(12)]
        assert pauses == [COOLDOWN_S] + 11 * [0.0]
        clock.advance(COOLDOWN_S + 5)
        assert cooldowns.set_cooldown(KEY, None, "throttled", began=began) == 0.0, "a late one"
        assert cooldowns.remaining_s(KEY) == 0.0
        assert cooldowns.failures(KEY) == 1

    def test_a_time_that_is_named_again_is_no_news(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        began = clock.monotonic()
        for _ in range(12):
            cooldowns.set_cooldown(KEY, 1.0, "throttled", began=began)
            clock.advance(0.05)
        assert cooldowns.remaining_s(KEY) == pytest.approx(0.4)

    def test_a_longer_time_that_is_named_meanwhile_is_news(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        began = clock.monotonic()
        cooldowns.set_cooldown(KEY, 1.0, "throttled", began=began)
        assert cooldowns.set_cooldown(KEY, 300.0, "plan_window_spent", began=began) == 300.0
        assert cooldowns.cause(KEY) == "plan_window_spent"
        assert cooldowns.failures(KEY) == 1

    def test_it_doubles_for_an_attempt_that_began_after_the_pause(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        cooldowns.set_cooldown(KEY, None, "throttled")
        clock.advance(COOLDOWN_S)
        began = clock.monotonic()
        pauses = [cooldowns.set_cooldown(KEY, None, "throttled", began=began) for _ in range(12)]
        assert pauses == [2 * COOLDOWN_S] + 11 * [0.0]

    def test_twenty_broken_calls_open_the_circuit_once(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        began = clock.monotonic()
        opened = [cooldowns.record_failure(KEY, "closed", began=began) for _ in range(20)]
        assert opened == 4 * [0.0] + [OPEN_S] + 15 * [0.0]
        assert cooldowns.remaining_s(KEY) == OPEN_S

    def test_what_began_before_a_throttle_does_not_end_it(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        began = clock.monotonic()
        clock.advance(1)
        cooldowns.set_cooldown(KEY, 10, "throttled")
        cooldowns.clear(KEY, began=began)
        assert cooldowns.remaining_s(KEY) == 10
        cooldowns.clear(KEY, began=clock.monotonic())
        assert cooldowns.remaining_s(KEY) == 0


class TestDoubt:
    @pytest.mark.parametrize(
        ("conversation", "request_"), [("talk", "odd"), ("talk", "try {}"), ("session {}", "odd")]
    )
    def test_one_odd_request_makes_no_pause_however_often_it_fails(
        self, cooldowns: Cooldowns, conversation: str, request_: str
    ) -> None:
        for number in range(20):
            odd = evidence(conversation.format(number), request_.format(number))
            assert cooldowns.record_failure(KEY, "denied", evidence=odd, steps=DOUBTED) == 0.0
            assert cooldowns.record_failure(OTHER, "internal_error", evidence=odd) == 0.0

    def test_two_conversations_that_fail_make_a_short_pause_and_more_a_longer_one(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        pauses = []
        for number in range(8):
            seen = evidence(f"talk {number}", f"request {number}")
            pauses.append(cooldowns.record_failure(KEY, "denied", evidence=seen, steps=DOUBTED))
            clock.advance(pauses[-1])
        assert pauses == [0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0]

    def test_a_probe_by_who_failed_last_tells_nothing_new(
        self, cooldowns: Cooldowns, clock: FakeClock
    ) -> None:
        for number in range(BREAKS_AT):
            seen = evidence(f"talk {number}", f"request {number}")
            opened = cooldowns.record_failure(KEY, "internal_error", evidence=seen)
        assert opened == OPEN_S
        clock.advance(OPEN_S)
        assert cooldowns.begin_probe(KEY)
        assert cooldowns.record_failure(KEY, "internal_error", evidence=seen) == 0.0
        assert cooldowns.remaining_s(KEY) == 0.0, "another one may try"
        assert cooldowns.begin_probe(KEY)
        other = evidence("talk 0", "request 0")
        assert cooldowns.record_failure(KEY, "internal_error", evidence=other) == 2 * OPEN_S

    def test_evidence_may_hold_zeros(self, cooldowns: Cooldowns) -> None:
        for first in (b"\1\0\0\0\1\0\0\0", b"\2\0\0\0\2\0\0\0", b"\0\0\0\3\0\0\0\3"):
            cooldowns.record_failure(KEY, "denied", evidence=first)
            cooldowns.record_failure(KEY, "denied", evidence=first)
        assert cooldowns.failures(KEY) == 3


class TestProbes:
    @pytest.fixture
    def half_open(self, cooldowns: Cooldowns, clock: FakeClock) -> Cooldowns:
        for _ in range(BREAKS_AT):
            cooldowns.record_failure(KEY, "timeout")
        clock.advance(OPEN_S)
        return cooldowns

    def test_one_call_probes(self, half_open: Cooldowns, clock: FakeClock) -> None:
        assert half_open.begin_probe(KEY)
        assert not half_open.begin_probe(KEY)
        assert half_open.is_probed(KEY)
        clock.advance(PROBE_S)
        assert half_open.begin_probe(KEY), "one more: the first may be slow"

    def test_a_probe_that_failed_counts_and_those_before_it_do_not(
        self, half_open: Cooldowns, clock: FakeClock
    ) -> None:
        early = clock.monotonic() - OPEN_S
        assert half_open.begin_probe(KEY)
        probe = clock.monotonic()
        assert half_open.record_failure(KEY, "timeout", began=early) == 0.0
        assert half_open.is_probed(KEY)
        assert half_open.record_failure(KEY, "timeout", began=probe) == 2 * OPEN_S

    def test_its_success_its_failure_and_its_end_are_news(self, half_open: Cooldowns) -> None:
        seen = half_open.news
        half_open.begin_probe(KEY)
        assert half_open.news == seen
        half_open.end_probe(KEY)
        assert half_open.news != seen
        assert half_open.remaining_s(KEY) == 0.0

    @pytest.mark.parametrize("ends", ["clear", "record_failure"])
    def test_so_are_how_it_ended(self, half_open: Cooldowns, clock: FakeClock, ends: str) -> None:
        half_open.begin_probe(KEY)
        clock.advance(0.1)
        seen = half_open.news
        if ends == "clear":
            half_open.clear(KEY)
        else:
            half_open.record_failure(KEY, "timeout")
        assert half_open.news != seen


class TestFile:
    def test_a_command_has_a_copy_and_writes_nothing(self, tmp_path: Path) -> None:
        assert Cooldowns(SharedFiles(tmp_path / "state", copy=True)).remaining_s(KEY) == 0.0
        assert not (tmp_path / "state").exists()
        server = Cooldowns(SharedFiles(tmp_path / "state"))
        server.set_cooldown(KEY, 60, "throttled")
        command = Cooldowns(SharedFiles(tmp_path / "state", copy=True))
        assert command.cause(KEY) == "throttled"
        command.clear(KEY)
        assert server.remaining_s(KEY) > 50

    def test_workers_share_it(self, tmp_path: Path) -> None:
        one = Cooldowns(SharedFiles(tmp_path / "state"))
        one.set_cooldown(KEY, 60, "throttled")
        program = (
            "import sys; from pathlib import Path\n"
            "from qwen_wsgi.state.shared_files import SharedFiles, key_of\n"
            "from qwen_wsgi.upstream.routing.cooldown import *\n"
            "cooldowns = Cooldowns(SharedFiles(Path(sys.argv[1])))\n"
            "print(cooldowns.remaining_s(key_of('account', 'model')) > 50)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "state")],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert done.stdout == "True\n"

    def test_workers_that_begin_together_have_the_same_one(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path\n"
            "from qwen_wsgi.state.shared_files import SharedFiles, key_of\n"
            "from qwen_wsgi.upstream.routing.cooldown import *\n"
            "sys.stdin.readline()\n"
            "cooldowns = Cooldowns(SharedFiles(Path(sys.argv[1])))\n"
            "cooldowns.set_cooldown(key_of(sys.argv[2]), 600, 'x')"
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
        cooldowns = Cooldowns(SharedFiles(tmp_path / "state"))
        assert all(cooldowns.remaining_s(key_of(str(number))) > 0 for number in range(6))
        assert [path.name[:9] for path in (tmp_path / "state").iterdir()] == ["cooldown-"]

    def test_another_boot_begins_anew(self, tmp_path: Path) -> None:
        Cooldowns(SharedFiles(tmp_path / "state", boot_id="one")).set_cooldown(
            KEY, 600, "throttled"
        )
        assert Cooldowns(SharedFiles(tmp_path / "state", boot_id="one")).remaining_s(KEY) > 0
        assert Cooldowns(SharedFiles(tmp_path / "state", boot_id="two")).remaining_s(KEY) == 0
        assert len(list((tmp_path / "state").iterdir())) == 1

    def test_it_is_private_and_holds_no_names(self, tmp_path: Path) -> None:
        cooldowns = Cooldowns(SharedFiles(tmp_path / "state"))
        cooldowns.set_cooldown(key_of("sk-secret", "model"), 60, "throttled")
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
            cooldowns = Cooldowns(SharedFiles(state))
            state.chmod(0o700)
        cooldowns.set_cooldown(KEY, 60, "throttled")
        assert cooldowns.remaining_s(KEY) > 0
        assert "workers cannot share" in caplog.text

    def test_a_full_disk_is_no_crash(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(fd: int, at: int, size: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        cooldowns = Cooldowns(SharedFiles(tmp_path / "state"))
        cooldowns.set_cooldown(KEY, 60, "throttled")
        assert cooldowns.remaining_s(KEY) > 0
        assert "No space left" in caplog.text
