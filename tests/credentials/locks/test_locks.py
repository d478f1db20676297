"""Both locks, against neighbours that come between any two steps. The clock is a fake one."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import signal
import stat
import subprocess
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.locks import lock_file
from qwen_wsgi.credentials.locks.cli_lock import CliLock
from qwen_wsgi.credentials.locks.lock_file import start_time
from qwen_wsgi.credentials.locks.proxy_lock import LockHolder, ProxyLock
from tests.fakes.clock import FakeClock
from tests.kit.privileges import as_ordinary_user

UUID = "0d7c9f5e-0f6e-4b0e-9a53-3b8f6f6f2f10"
#: Longer than any test: the heartbeat's thread sleeps, and the test calls check().
NEVER_S = 3600.0


class Scene:
    """A lock's path, a clock that only sleeping moves, and hooks to come in between."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        self.path = directory / "oauth_creds.lock"
        self.clock = clock
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.slept_s: list[float] = []
        #: Called once, at the checkpoint of this name.
        self.at: dict[str, Callable[[], object]] = {}
        #: Called in every sleep, after the clock has moved.
        self.in_sleep: Callable[[], object] = lambda: None
        self.made: list[CliLock] = []

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept_s.append(seconds)
        self.clock.advance(seconds)
        self.in_sleep()

    def checkpoint(self, name: str) -> None:
        self.at.pop(name, lambda: None)()

    def lock(self, **changes: Any) -> CliLock:
        settings: dict[str, Any] = {
            "clock": self.clock,
            "sleep": self.sleep,
            "heartbeat_s": NEVER_S,
            "on_event": lambda name, fields: self.events.append((name, fields)),
            "checkpoint": self.checkpoint,
        }
        self.made.append(CliLock(self.path, **{**settings, **changes}))
        return self.made[-1]

    def foreign(self, age_s: float = 0.0, content: str = UUID) -> None:
        """Have a qwen-code create its lock, so long ago by the wall clock."""
        with open(self.path, "x") as file:
            file.write(content)
        self.date(age_s)

    def date(self, age_s: float) -> None:
        at_s = self.clock.now() - age_s
        os.utime(self.path, (at_s, at_s), follow_symlinks=False)

    def replace(self) -> None:
        """Have our lock dropped by a qwen-code that ends, and taken by another."""
        self.path.unlink()
        self.foreign()

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def files(self) -> list[str]:
        return sorted(os.listdir(self.path.parent))


@pytest.fixture
def scene(tmp_path: Path, clock: FakeClock) -> Iterator[Scene]:
    directory = tmp_path / "qwen"
    directory.mkdir()
    scene = Scene(directory, clock)
    yield scene
    for lock in scene.made:
        lock.release()
    assert not [each for each in threading.enumerate() if each.name == "cli-lock-heartbeat"]


def ended_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads: exactly that is to be tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(work: Callable[[], None]) -> None:
    """Run a function in a forked copy of this process; an exception in it fails the test."""
    pid = fork()
    if pid == 0:
        # It may wait for ever, and pytest's time limit is not inherited.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


# Which process is it?


def test_a_process_is_known_by_its_start_time() -> None:
    mine = start_time(os.getpid())

    assert mine is not None
    assert start_time(os.getpid()) == mine
    assert start_time(ended_pid()) is None


def test_a_name_with_parentheses_and_blanks_does_not_shift_the_fields(tmp_path: Path) -> None:
    odd = tmp_path / "x) R 1 (y z"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "60"])
    try:
        began = start_time(process.pid)
        ours = start_time(os.getpid())
        assert began is not None
        assert ours is not None
        assert 0 <= began - ours < 3600 * os.sysconf("SC_CLK_TCK")
    finally:
        process.kill()
        process.wait()


def test_a_killed_process_that_nobody_has_reaped_is_gone() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert start_time(process.pid) is not None
        process.kill()
        # Waits for the end, but leaves the zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert os.path.exists(f"/proc/{process.pid}")
        assert start_time(process.pid) is None
    finally:
        process.wait()


# Lock A.


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "qwen").mkdir()
    return tmp_path / "qwen/.qwen-proxy/refresh.lock"


def proxy_lock(path: Path, clock: FakeClock, **changes: Any) -> ProxyLock:
    settings: dict[str, Any] = {
        "monotonic": clock.monotonic,
        "sleep": clock.advance,
        "random": lambda: 0.5,
        "now": clock.now,
    }
    return ProxyLock(path, **{**settings, **changes})


def test_the_directory_and_the_file_are_private(state: Path, clock: FakeClock) -> None:
    lock = proxy_lock(state, clock)

    assert lock.acquire(0)

    assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    lock.release()
    assert not lock.held
    assert state.exists()


def test_parents_of_the_directory_are_not_made(tmp_path: Path, clock: FakeClock) -> None:
    with pytest.raises(FileNotFoundError):
        proxy_lock(tmp_path / "no/such/refresh.lock", clock).acquire(1)

    assert not (tmp_path / "no").exists()


def test_two_locks_in_one_process_exclude_each_other(state: Path, clock: FakeClock) -> None:
    one, two = proxy_lock(state, clock), proxy_lock(state, clock)
    assert one.acquire(1)

    assert not two.acquire(1)
    two.release()
    assert one.held
    assert not two.held
    one.release()
    assert two.acquire(0)
    two.release()


def test_one_lock_excludes_the_threads_that_share_it(state: Path, clock: FakeClock) -> None:
    lock = proxy_lock(state, clock)
    assert lock.acquire(0)

    assert not lock.acquire(1)

    assert lock.held
    lock.release()


def test_waiting_ends_at_the_timeout_and_polls_with_jitter(state: Path, clock: FakeClock) -> None:
    holder = proxy_lock(state, clock)
    assert holder.acquire(0)
    slept: list[float] = []
    numbers = iter([0.0, 1.0, 0.5, 0.5, 0.5])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    waiter = proxy_lock(state, clock, sleep=sleep, random=lambda: next(numbers))
    assert not waiter.acquire(0.55)

    assert slept == pytest.approx([0.05, 0.25, 0.15, 0.1])
    holder.release()


def test_a_waiter_gets_the_lock_when_it_is_released(state: Path, clock: FakeClock) -> None:
    holder = proxy_lock(state, clock)
    assert holder.acquire(0)

    def sleep(seconds: float) -> None:
        clock.advance(seconds)
        if clock.monotonic() > 1001:
            holder.release()

    waiter = proxy_lock(state, clock, sleep=sleep)
    assert waiter.acquire(55)

    assert clock.monotonic() < 1001.5
    waiter.release()


def test_giving_up_is_asked_before_each_further_try(state: Path, clock: FakeClock) -> None:
    holder, waiter = proxy_lock(state, clock), proxy_lock(state, clock)
    answers = iter([False, False, True])
    assert holder.acquire(0, give_up=lambda: True)

    assert not waiter.acquire(55, give_up=lambda: next(answers))

    assert clock.monotonic() == pytest.approx(1000 + 3 * 0.15)
    holder.release()


def test_a_holder_is_shown_to_others(state: Path, clock: FakeClock) -> None:
    lock, looker = proxy_lock(state, clock), proxy_lock(state, clock)
    assert looker.holder() is None
    assert not state.parent.exists()
    assert lock.acquire(0)

    shown = LockHolder(os.getpid(), start_time(os.getpid()), clock.now())
    assert looker.holder() == shown
    assert lock.holder() == shown
    state.write_text("")
    assert looker.holder() == LockHolder(None, None, None)
    lock.release()
    assert looker.holder() is None
    assert lock.acquire(0)
    lock.release()


def test_a_longer_name_before_us_leaves_nothing_behind(state: Path, clock: FakeClock) -> None:
    state.parent.mkdir()
    state.write_text("x" * 500)
    lock = proxy_lock(state, clock)
    assert lock.acquire(0)

    assert state.read_text().startswith(f"qwen-proxy {os.getpid()} ")
    assert state.read_text().count("\n") == 1
    lock.release()


def test_a_full_disk_does_not_cost_the_lock(
    state: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = proxy_lock(state, clock)

    def full(fd: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert lock.acquire(0)

    assert lock.holder() == LockHolder(None, None, None)
    lock.release()


def link_in_its_place(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(path.parent / "elsewhere")


def directory_in_its_place(path: Path) -> None:
    path.mkdir(parents=True)


def file_for_a_directory(path: Path) -> None:
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (link_in_its_place, errno.ELOOP),
        (directory_in_its_place, errno.EISDIR),
        (file_for_a_directory, errno.ENOTDIR),
    ],
)
def test_a_place_that_cannot_be_locked_is_an_error(
    state: Path, clock: FakeClock, spoil: Callable[[Path], None], error: int
) -> None:
    spoil(state)
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(OSError) as caught:
        proxy_lock(state, clock).acquire(1)

    assert caught.value.errno == error
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_file_that_is_replaced_between_open_and_flock_is_not_trusted(
    state: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `rm -rf ~/.qwen/.qwen-proxy` does: another process locks the new file."""
    lock, other = proxy_lock(state, clock), proxy_lock(state, clock)
    flock = fcntl.flock

    def replaced(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        state.unlink()
        assert other.acquire(0)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    assert not lock.acquire(0)
    other.release()
    assert lock.acquire(0)
    lock.release()


def test_a_lock_file_that_is_removed_between_open_and_flock_is_made_again(
    state: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = proxy_lock(state, clock)
    flock = fcntl.flock

    def removed(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        state.unlink()
        state.parent.rmdir()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    assert lock.acquire(1)
    assert state.exists()
    lock.release()


def test_a_forked_child_neither_has_nor_frees_its_parents_lock(
    state: Path, clock: FakeClock
) -> None:
    lock = proxy_lock(state, clock)
    assert lock.acquire(0)

    def child() -> None:
        assert not lock.held
        assert not lock.acquire(1)
        lock.release()

    in_child(child)

    assert lock.held
    assert not proxy_lock(state, clock).acquire(1)
    lock.release()


def test_a_child_that_is_forked_while_the_lock_is_held_does_not_keep_it(
    state: Path, clock: FakeClock
) -> None:
    lock = proxy_lock(state, clock)
    assert lock.acquire(0)
    end, stay = os.pipe()
    pid = fork()
    if pid == 0:
        # It never touches the lock, and has a copy of the fd all the time.
        os.close(stay)
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    try:
        lock.release()
        assert lock.acquire(0)
        lock.release()
    finally:
        os.close(stay)
        os.waitpid(pid, 0)


def test_no_descriptor_stays_open(state: Path, clock: FakeClock) -> None:
    before = len(os.listdir("/proc/self/fd"))
    one, two = proxy_lock(state, clock), proxy_lock(state, clock)

    for _ in range(3):
        assert one.acquire(0)
        assert not two.acquire(1)
        assert two.holder()
        one.release()
        assert not two.holder()

    assert len(os.listdir("/proc/self/fd")) == before


# Lock B: taking and giving back.


def test_the_lock_says_whose_it_is(scene: Scene) -> None:
    lock = scene.lock(token_hex=lambda size: "ab" * size)

    assert lock.acquire()

    began = start_time(os.getpid())
    assert scene.path.read_text() == f"qwen-proxy {os.getpid()} {began} {'ab' * 16}\n"
    assert stat.S_IMODE(scene.path.stat().st_mode) == 0o600
    assert not lock.lost
    assert lock.observed() is None
    lock.release()
    assert not lock.held
    assert scene.files() == []
    assert scene.events == []


def test_release_is_harmless_when_there_is_nothing_to_release(scene: Scene) -> None:
    lock = scene.lock()
    lock.release()
    scene.foreign()
    lock.release()

    assert scene.files() == ["oauth_creds.lock"]
    assert not lock.check()


def test_a_second_acquire_through_the_same_object_is_a_mistake(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()

    with pytest.raises(RuntimeError):
        lock.acquire()

    assert lock.held


def test_a_foreign_lock_is_waited_for(scene: Scene) -> None:
    scene.foreign()
    lock = scene.lock()

    def leaves_after_a_second() -> None:
        if scene.clock.monotonic() >= 1001:
            scene.path.unlink(missing_ok=True)

    scene.in_sleep = leaves_after_a_second
    assert lock.acquire()

    assert sum(scene.slept_s) == pytest.approx(1, abs=0.11)
    assert scene.events == []


def test_waiting_for_a_foreign_lock_ends(scene: Scene) -> None:
    scene.foreign()
    lock = scene.lock()

    assert not lock.acquire()

    assert sum(scene.slept_s) == pytest.approx(25)
    [(name, fields)] = scene.events
    assert name == "lock_timeout"
    assert fields["path"] == str(scene.path)
    assert fields["waited_s"] == pytest.approx(25)
    assert fields["age_s"] == pytest.approx(25)
    assert fields["pid"] is fields["alive"] is None
    assert scene.path.read_text() == UUID


def test_a_lock_that_vanishes_at_the_last_moment_is_still_a_timeout(scene: Scene) -> None:
    scene.foreign()
    lock = scene.lock()
    looks: list[int] = []
    inspect = lock._stale.inspect

    def vanishing() -> Any:
        looks.append(1)
        if len(looks) == 2:
            scene.path.unlink()
        return inspect()

    lock._stale.inspect = vanishing  # type: ignore[method-assign]  # another process
    assert not lock.acquire(0)

    assert scene.events == [("lock_timeout", {"path": str(scene.path), "waited_s": 0})]


def test_a_lock_that_vanishes_between_two_looks_is_no_error(scene: Scene) -> None:
    scene.foreign()
    lock = scene.lock()
    inspect = lock._stale.inspect

    def vanishing() -> Any:
        scene.path.unlink(missing_ok=True)
        return inspect()

    lock._stale.inspect = vanishing  # type: ignore[method-assign]  # another process
    assert lock.acquire()
    assert len(scene.slept_s) == 1


def test_giving_up_ends_the_wait_without_an_event(scene: Scene) -> None:
    scene.foreign()
    answers = iter([False, True])

    assert not scene.lock().acquire(give_up=lambda: next(answers))

    assert len(scene.slept_s) == 2
    assert scene.events == []


# Lock B: what is left behind.


@pytest.mark.parametrize("age_s", [0, 10, 11, 35, 36.9])
def test_a_lock_that_some_qwen_code_may_still_use_is_not_broken(scene: Scene, age_s: float) -> None:
    scene.foreign(age_s)

    assert not scene.lock().acquire(0)
    scene.in_sleep = lambda: scene.date(age_s)
    assert not scene.lock().acquire(5)

    assert scene.path.read_text() == UUID


def test_an_old_lock_is_broken_once_it_stood_still_for_two_seconds(scene: Scene) -> None:
    scene.foreign(37.1)
    lock = scene.lock()

    assert not lock.acquire(1.9)
    assert scene.path.read_text() == UUID
    assert lock.acquire(1)

    assert sum(scene.slept_s) == pytest.approx(2, abs=0.11)
    assert scene.names() == ["lock_timeout", "foreign_lock_broken"]
    fields = scene.events[1][1]
    assert fields["age_s"] == pytest.approx(39.1, abs=0.11)
    assert fields["pid"] is None
    assert scene.files() == ["oauth_creds.lock"]


def test_an_old_lock_that_is_touched_before_our_eyes_is_not_broken(scene: Scene) -> None:
    scene.foreign(100)
    ages = iter(range(101, 1000))
    scene.in_sleep = lambda: scene.date(next(ages))

    assert not scene.lock().acquire()

    assert scene.names() == ["lock_timeout"]


def test_a_lock_grows_old_while_we_wait(scene: Scene) -> None:
    scene.foreign(20)

    assert scene.lock().acquire()

    assert sum(scene.slept_s) == pytest.approx(17, abs=0.11)


def test_a_date_in_the_future_is_outwaited_over_several_attempts(scene: Scene) -> None:
    scene.foreign(-1_000_000)
    lock = scene.lock()

    assert not lock.acquire(25)
    seen = lock.observed()
    assert seen is not None
    assert seen.in_future
    assert seen.seen_s == pytest.approx(25)
    scene.clock.advance(11)
    assert not lock.acquire(0.9)
    assert lock.acquire(1)

    assert scene.names() == ["lock_timeout", "lock_timeout", "foreign_lock_broken"]


def test_a_wall_clock_that_steps_back_does_not_make_us_wait_for_ever(scene: Scene) -> None:
    scene.foreign(0)
    lock = scene.lock()
    assert not lock.acquire(1)
    scene.clock.wall_s -= 7200
    scene.clock.advance(36)

    assert lock.acquire(1)


def test_a_wall_clock_that_steps_forward_does_not_break_a_lock_that_is_let_go(
    scene: Scene,
) -> None:
    scene.foreign(0)
    lock = scene.lock()
    assert not lock.acquire(0)
    scene.clock.wall_s += 7200

    assert not lock.acquire(1.9)

    assert scene.path.read_text() == UUID


def test_an_observation_ends_when_the_lock_was_gone_in_between(scene: Scene) -> None:
    scene.foreign(-1_000_000)
    lock = scene.lock()
    assert lock.observed()
    scene.path.unlink()
    assert lock.observed() is None
    scene.clock.advance(100)
    scene.foreign(-1_000_000)

    assert not lock.acquire(30)


def test_our_own_lock_of_a_dead_process_is_broken_at_once(scene: Scene) -> None:
    pid = ended_pid()
    scene.foreign(content=f"qwen-proxy {pid} 12345 {'0f' * 16}\n")

    assert scene.lock().acquire(0)

    assert scene.slept_s == []
    [(name, fields)] = scene.events
    assert name == "own_dead_lock_broken"
    assert fields["pid"] == pid


def test_a_pid_that_was_given_out_again_is_dead(scene: Scene) -> None:
    began = start_time(os.getpid())
    assert began is not None
    scene.foreign(content=f"qwen-proxy {os.getpid()} {began - 1} {'0f' * 16}\n")

    assert scene.lock().acquire(0)

    assert scene.names() == ["own_dead_lock_broken"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("qwen-proxy {live} {began} 0f0f\n", id="alive"),
        pytest.param("qwen-proxy {live} 0 0f0f\n", id="start unknown"),
        pytest.param("qwen-proxy {dead} 0 0f0f\n", id="start unknown, no such pid"),
        pytest.param("qwen-proxy {dead} 12345 0f0f", id="half written"),
        pytest.param("qwen-proxy {dead} 12345 0f0f\nmore\n", id="longer"),
        pytest.param("", id="empty"),
        pytest.param("{dead}\n", id="just a pid"),
    ],
)
def test_what_is_not_surely_ours_and_dead_is_waited_for(scene: Scene, content: str) -> None:
    values = {"live": os.getpid(), "began": start_time(os.getpid()), "dead": ended_pid()}
    scene.foreign(content=content.format(**values))

    assert not scene.lock().acquire(5)

    assert scene.path.exists()
    scene.date(100)
    assert scene.lock().acquire(5)


def test_without_proc_nobody_is_declared_dead(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_file, "start_time", lambda pid: None)
    assert scene.lock().acquire(0)

    other = scene.lock()

    assert not other.acquire(1)
    seen = other.observed()
    assert seen is not None
    assert seen.pid == os.getpid()
    assert seen.alive is None


def test_a_lock_that_cannot_be_read_is_a_foreign_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.foreign(content=f"qwen-proxy {ended_pid()} 12345 0f0f\n")
    opening = os.open

    def refusing(path: Any, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "no")
        return opening(path, flags, mode)

    lock = scene.lock()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        assert not lock.acquire(1)

    assert lock.acquire(0)


@pytest.mark.parametrize("target", ["nowhere", "target"])
def test_a_symbolic_link_is_a_lock_like_any_other(scene: Scene, target: str) -> None:
    bait = scene.path.with_name("target")
    bait.write_text(f"qwen-proxy {ended_pid()} 12345 0f0f\n")
    scene.path.symlink_to(target)
    scene.date(36)
    os.utime(bait, (1, 1))
    lock = scene.lock()

    assert not lock.acquire(0)
    seen = lock.observed()
    assert seen is not None
    assert seen.symlink
    assert not seen.ours
    assert seen.age_s == pytest.approx(36)
    assert lock.acquire(2.1)

    assert not scene.path.is_symlink()
    assert scene.path.read_text().startswith("qwen-proxy ")
    assert bait.exists()
    assert not scene.path.with_name("nowhere").exists()


def test_status_shows_a_lock_of_ours(scene: Scene) -> None:
    assert scene.lock().acquire()

    seen = scene.lock().observed()

    assert seen is not None
    assert seen.ours
    assert seen.pid == os.getpid()
    assert seen.alive
    assert not seen.symlink


# Lock B: somebody comes in between in a takeover.


def test_a_lock_that_was_created_anew_before_our_rename_is_put_back(scene: Scene) -> None:
    scene.foreign(100)
    lock = scene.lock()
    new: list[os.stat_result] = []

    def taken_over_by_another() -> None:
        scene.replace()
        new.append(scene.path.stat())

    scene.at["break"] = taken_over_by_another
    assert not lock.acquire(5)

    assert os.path.samestat(scene.path.stat(), new[0])
    assert scene.path.stat().st_nlink == 1
    assert scene.files() == ["oauth_creds.lock"]
    assert scene.names() == ["lock_timeout"]


def test_a_lock_that_was_touched_before_our_rename_is_put_back(scene: Scene) -> None:
    """Its inode is the same: the date says that its owner lives."""
    scene.foreign(100)
    scene.at["break"] = lambda: scene.date(0)

    assert not scene.lock().acquire(5)

    assert scene.path.read_text() == UUID
    assert scene.names() == ["lock_timeout"]


def test_a_live_symbolic_link_is_put_back_as_one(scene: Scene) -> None:
    scene.path.symlink_to("nowhere")
    scene.date(100)
    scene.at["break"] = lambda: scene.date(0)

    assert not scene.lock().acquire(5)

    assert os.readlink(scene.path) == "nowhere"
    assert scene.files() == ["oauth_creds.lock"]


def test_a_lock_is_not_put_back_over_a_third_one(scene: Scene) -> None:
    scene.foreign(100)
    scene.at["break"] = scene.replace
    scene.at["renamed"] = lambda: scene.foreign(content="third")

    assert not scene.lock().acquire(5)

    assert scene.path.read_text() == "third"
    assert scene.files() == ["oauth_creds.lock"]


def test_a_lock_is_put_back_where_links_are_forbidden(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", forbidden)
    scene.foreign(100)
    scene.at["break"] = scene.replace

    assert not scene.lock().acquire(5)

    assert scene.path.read_text() == UUID
    assert scene.files() == ["oauth_creds.lock"]


@pytest.mark.parametrize("point", ["break", "renamed"])
def test_an_owner_who_returns_during_the_takeover_may_remove_its_lock(
    scene: Scene, point: str
) -> None:
    def returns() -> None:
        for name in scene.files():
            os.unlink(scene.path.parent / name)

    scene.foreign(100)
    scene.at[point] = returns

    assert scene.lock().acquire(5)

    assert scene.files() == ["oauth_creds.lock"]
    assert scene.events == []


def test_two_who_break_the_same_lock_do_not_both_get_it(scene: Scene) -> None:
    """The second one judged the old lock, and renames the first one's new lock."""
    scene.foreign(100)
    first, second = scene.lock(), scene.lock()
    assert first.observed()
    assert second.observed()
    scene.clock.advance(2)
    # The hook is gone once it was called: only the second one's takeover is interrupted.
    scene.at["break"] = lambda: first.acquire(0)
    assert not second.acquire(1)

    assert first.held
    assert first.check()
    assert not second.held
    assert scene.names().count("foreign_lock_broken") == 1
    assert scene.files() == ["oauth_creds.lock"]


def test_a_victim_whose_lock_is_away_for_a_moment_creates_it_again(scene: Scene) -> None:
    scene.foreign(100)
    first, second = scene.lock(), scene.lock()
    assert first.observed()
    assert second.observed()
    scene.clock.advance(2)
    scene.at["break"] = lambda: first.acquire(0)
    scene.at["renamed"] = lambda: scene.at.update(renamed=lambda: first.check())

    assert not second.acquire(0)

    assert first.held
    assert first.check()
    assert scene.names() == ["foreign_lock_broken", "foreign_lock_lost", "lock_timeout"]
    assert scene.files() == ["oauth_creds.lock"]


def test_somebody_may_be_quicker_after_we_broke_a_lock(scene: Scene) -> None:
    scene.foreign(100)
    lock = scene.lock()
    assert lock.observed()
    scene.clock.advance(2)

    def quicker(name: str, fields: Mapping[str, Any]) -> None:
        if name == "foreign_lock_broken":
            scene.foreign()

    lock._stale._on_event = quicker
    assert not lock.acquire(0)

    assert scene.path.read_text() == UUID


# Lock B: while it is held.


def test_the_heartbeat_touches_the_lock(scene: Scene) -> None:
    lock = scene.lock(heartbeat_s=0.01)
    assert lock.acquire()
    os.utime(scene.path, (1, 1))

    deadline = time.monotonic() + 10
    while scene.path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)

    assert abs(time.time() - scene.path.stat().st_mtime) < 10
    lock.release()
    time.sleep(0.05)
    assert scene.files() == []


def test_the_heartbeat_survives_a_sink_that_fails(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(name: str, fields: Mapping[str, Any]) -> None:
        scene.events.append((name, fields))
        raise ValueError("sink")

    lock = scene.lock(heartbeat_s=0.01, on_event=failing)
    assert lock.acquire()

    for count in (1, 2):
        scene.path.unlink()
        deadline = time.monotonic() + 10
        while len(scene.events) < count and time.monotonic() < deadline:
            time.sleep(0.01)

    assert scene.names() == ["foreign_lock_lost"] * 2
    assert "heartbeat of the lock failed" in caplog.text
    assert lock.held


def test_an_event_may_release_the_lock_from_the_heartbeats_thread(scene: Scene) -> None:
    done = threading.Event()

    def releasing(name: str, fields: Mapping[str, Any]) -> None:
        lock.release()
        done.set()

    lock = scene.lock(heartbeat_s=0.01, on_event=releasing)
    assert lock.acquire()
    heartbeat = lock._hold and lock._hold.heartbeat
    scene.path.unlink()

    assert done.wait(10)
    assert heartbeat
    heartbeat.join(10)
    assert scene.files() == []


def test_a_removed_lock_is_created_again(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    before = scene.path.read_text()
    descriptors = len(os.listdir("/proc/self/fd"))
    scene.path.unlink()

    assert lock.check()

    assert lock.held
    assert not lock.lost
    assert scene.path.read_text() != before
    assert scene.events == [
        ("foreign_lock_lost", {"path": str(scene.path), "cause": "removed", "recreated": True})
    ]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    lock.release()
    assert scene.files() == []


def test_a_replaced_lock_is_lost_and_left_alone(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    scene.replace()
    scene.date(5)
    dated = scene.path.stat().st_mtime_ns

    assert not lock.check()
    assert not lock.check()

    assert lock.lost
    assert not lock.held
    assert scene.path.stat().st_mtime_ns == dated
    assert scene.events == [
        ("foreign_lock_lost", {"path": str(scene.path), "cause": "replaced", "recreated": False})
    ]
    seen = lock.observed()
    assert seen is not None
    assert not seen.ours
    lock.release()
    assert scene.path.read_text() == UUID
    assert lock.lost


def test_a_lost_lock_ends_the_heartbeat_and_can_be_taken_again(scene: Scene) -> None:
    lock = scene.lock(heartbeat_s=0.01)
    assert lock.acquire()
    heartbeat = lock._hold and lock._hold.heartbeat
    assert heartbeat
    taken = scene.path.with_name("taken")
    taken.write_text(UUID)
    os.replace(taken, scene.path)

    heartbeat.join(10)
    assert not heartbeat.is_alive()
    assert lock.lost
    lock.release()
    scene.path.unlink()
    assert lock.acquire()
    assert lock.held
    assert not lock.lost


def test_a_lock_that_is_taken_before_we_create_it_again_is_lost(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    scene.path.unlink()
    scene.at["missing"] = scene.foreign

    assert not lock.check()

    assert lock.lost
    lock.release()
    assert scene.path.read_text() == UUID


def test_a_replaced_lock_is_not_removed_even_if_no_heartbeat_saw_it(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    scene.replace()

    lock.release()

    assert scene.path.read_text() == UUID


def test_a_removed_lock_is_released_quietly(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    scene.at["release"] = scene.path.unlink

    lock.release()

    assert scene.files() == []


def test_a_lock_whose_directory_is_gone_is_lost(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    scene.path.unlink()
    scene.path.parent.rmdir()

    assert not lock.check()

    assert lock.lost
    assert scene.events[0][1]["cause"] == "ENOENT"
    lock.release()


def test_a_heartbeat_that_is_late_does_not_bring_the_lock_back(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    hold = lock._hold
    assert hold
    lock.release()

    assert not lock._check(hold)

    assert scene.files() == []
    assert scene.events == []


# Lock B: where it cannot be had.


def test_an_unusable_directory_is_an_error(scene: Scene, clock: FakeClock) -> None:
    scene.path.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        scene.lock().acquire()
    scene.path.parent.write_text("a file")
    with pytest.raises(NotADirectoryError):
        scene.lock().acquire()


def test_an_unwritable_directory_is_an_error(scene: Scene) -> None:
    scene.path.parent.chmod(0o500)
    try:
        with as_ordinary_user(scene.path.parent), pytest.raises(PermissionError):
            scene.lock().acquire()
    finally:
        scene.path.parent.chmod(0o700)


def test_a_directory_in_the_locks_place_is_an_error(scene: Scene) -> None:
    scene.path.mkdir()

    with pytest.raises(IsADirectoryError):
        scene.lock().acquire()

    assert scene.path.is_dir()


def test_a_socket_in_the_locks_place_is_never_opened(scene: Scene) -> None:
    os.mkfifo(scene.path)
    scene.date(100)

    assert scene.lock().acquire(3)


def test_a_full_disk_leaves_no_lock_behind(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="full"):
            scene.lock().acquire()

    assert scene.files() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_thread_that_cannot_start_leaves_no_lock_behind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, mine = threading.Thread.start, threading.get_ident()

    def refused(self: threading.Thread) -> None:
        if threading.get_ident() != mine:
            return start(self)
        raise RuntimeError("can't start new thread")

    lock = scene.lock()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="start new thread"):
            lock.acquire()

    assert not lock.held
    assert scene.files() == []


def test_a_lock_that_cannot_be_removed_is_logged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(path: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    lock = scene.lock()
    assert lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", read_only)
        lock.release()

    assert not lock.held
    assert "lock was not removed" in caplog.text


# Lock B: forks, crashes.


def test_a_forked_child_does_not_touch_its_parents_file(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    hold = lock._hold
    assert hold
    dated = scene.path.stat().st_mtime_ns

    def child() -> None:
        assert not lock.held
        assert not lock._check(hold)
        assert not lock.check()
        lock.release()
        assert not lock.acquire(1)
        seen = lock.observed()
        assert seen
        assert seen.alive
        assert seen.pid == os.getppid()

    # As it may be in the moment of the fork: the child must not wait for a thread it has not got.
    with hold.mutex:
        in_child(child)

    assert scene.path.stat().st_mtime_ns == dated
    assert lock.check()
    assert scene.names() == []
    lock.release()
    assert scene.files() == []


def test_a_child_recreates_nothing_when_the_parents_lock_is_gone(scene: Scene) -> None:
    lock = scene.lock()
    assert lock.acquire()
    hold = lock._hold
    assert hold

    def child() -> None:
        scene.path.unlink()
        assert not lock._check(hold)
        assert scene.files() == []

    in_child(child)

    assert lock.check()
    assert scene.names() == ["foreign_lock_lost"]


def test_what_a_crashed_takeover_left_is_swept_after_an_hour(scene: Scene) -> None:
    ours = f"oauth_creds.lock.break.4711.{secrets.token_hex(16)}"
    others = [
        "oauth_creds.lock.break.4711.short",
        f"oauth_creds.lock.stale.4711.{secrets.token_hex(16)}",
        f"other.lock.break.4711.{secrets.token_hex(16)}",
        "oauth_creds.json",
    ]
    for name in (ours, *others):
        (scene.path.parent / name).write_text("")
        # The age of the lock says nothing about when it was put aside.
        os.utime(scene.path.parent / name, (1, 1))
    lock = scene.lock()

    scene.clock.wall_s = time.time() + 3500
    assert lock.acquire()
    lock.release()
    assert scene.files() == sorted([ours, *others])
    scene.clock.wall_s = time.time() + 3700
    assert lock.acquire()
    lock.release()
    assert scene.files() == sorted(others)
