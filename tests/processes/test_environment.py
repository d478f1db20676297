"""Real processes where clocks step, machines sleep, and disks are full, odd, or not ours to write.

The kernel's clocks are everybody's, so it is the processes' own that move (see `guided_user`), and
with them the sandbox's when time passes for all. File systems are real ones.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.files.login_store import LoginPaths
from qwen_wsgi.sandbox import Sandbox
from tests.kit.log_files import note_log_file
from tests.kit.login_files import write_login
from tests.kit.servers import Server
from tests.processes.guided_user import FILLER, fill
from tests.processes.logins import DEADLINE_S, ROOT, Ended, Home

pytestmark = pytest.mark.server

HOUR_S = 3600.0
#: Of a token that nobody needs to renew in a test.
LIFE_S = 6 * HOUR_S
KILLED = -9
#: A little more than the longest pause after the first failed attempt.
PAUSE_S = 61.0
#: Room for a login, its journal and both reservations, and not much more.
DISK = "size=256k"
#: Tokens of the idle proxy are renewed after three quarters of it.
SHORT_LIFE_S = 8.0


class Ahead:
    """The clock that is right, in the sandbox: the machine's, moved by what we say has passed."""

    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> float:
        return time.time() + self.s


class Namespace:
    """Mounts that only some processes see, and that end with their keeper."""

    def __init__(self, *mounts: tuple[str, ...]) -> None:
        for tool in ("unshare", "nsenter", "mount"):
            if shutil.which(tool) is None:
                pytest.skip(f"there is no `{tool}` here")
        owner = os.geteuid() == 0
        new = ("--mount",) if owner else ("--user", "--map-root-user", "--mount")
        self._same = ("--mount",) if owner else ("--user", "--preserve-credentials", "--mount")
        script = "\n".join([*(shlex.join(("mount", *each)) for each in mounts), "echo done", "cat"])
        self._keeper = subprocess.Popen(
            ["unshare", *new, "sh", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout
        if self._keeper.stdout.readline() != "done\n":
            problem = self._keeper.communicate()[1].strip()
            pytest.skip(f"this environment allows no mounts ({problem})")

    def inside(self) -> list[str]:
        """What to put before a command."""
        enter = ["nsenter", "--target", str(self._keeper.pid), *self._same]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT)]

    def seen(self, path: Path) -> Path:
        """What processes inside have at a path; not for processes inside."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()


class Guided:
    """A running `guided_user`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def tell(self, *line: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def ask(self, *line: object) -> Any:
        self.tell(*line)
        assert self.process.stdout
        answer = self.process.stdout.readline()
        assert answer, self.process.communicate()[1]
        return json.loads(answer)

    def current(self) -> str:
        """The token that a call gets."""
        (got,) = self.ask("current", 1)
        assert "token" in got, got
        return str(got["token"])

    def look(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("look")
        return found

    def rest(self) -> dict[str, Any]:
        """Wait until nothing is under way, then look."""
        self.ask("rest")
        return self.look()

    def step(self, wall_s: float) -> None:
        """Somebody sets the clock."""
        self.ask("move", {"wall": wall_s})


class World(Home):
    """A home whose processes are guided, and may live in a namespace of their own."""

    def __init__(self, directory: Path, sandbox: Sandbox, ahead: Ahead) -> None:
        super().__init__(directory, sandbox)
        self._home = directory
        self._ahead = ahead
        self._namespace: Namespace | None = None
        self._guided: list[Guided] = []

    def enter(self, *mounts: tuple[str, ...]) -> None:
        """Let the processes that begin from now on have these mounts."""
        self._namespace = Namespace(*mounts)
        self.directory = self._namespace.seen(self._home)
        self.paths = LoginPaths.beside(self.directory / ".qwen/oauth_creds.json")

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "PYTHONPATH": str(ROOT),
            "QWEN_OAUTH_BASE_URL": self.sandbox.origin,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Start a process of ours; see `guided_user` for the arguments."""
        before = self._namespace.inside() if self._namespace else []
        ours = [sys.executable, "-W", "error", "-m", "tests.processes.guided_user"]
        process = subprocess.Popen(
            [*before, *ours, *map(str, args)],
            cwd=ROOT,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def guided(self, *args: object) -> Guided:
        self._guided.append(Guided(self.start(*args)))
        return self._guided[-1]

    def renewed(self, *args: object, life_s: float = LIFE_S) -> tuple[Guided, str]:
        """A process that has fetched its login itself, and the token."""
        self.sandbox.control(access_ttl_s=life_s)
        self.log_in(left_s=-5)
        process = self.guided(*args)
        token = process.current()
        assert process.rest()["state"] == "fresh"
        assert self.counted() == (1, 0, 0)
        return process, token

    def command(self, *args: object) -> tuple[int, str]:
        """`qwen-proxy`; its exit status and what it printed."""
        process = self.start("cli", *args)
        out, log = process.communicate(timeout=DEADLINE_S)
        assert "Traceback" not in log
        assert "sandbox-at-" not in out + log
        assert "sandbox-rt-" not in out + log
        return process.returncode, out + log

    def stop(self, guided: Guided) -> Ended:
        """End its input, and so the process."""
        return self.end(guided.process)

    def close(self) -> None:
        super().close()
        if self._namespace is not None:
            self._namespace.close()

    def sleep(self, seconds: float, *, wall: bool = True) -> None:
        """The machine is suspended; `wall`: its clock was set when it woke up."""
        self._ahead.s += seconds
        self._move(boot=seconds, wall=seconds if wall else 0)

    def passes(self, seconds: float) -> None:
        """Time, for everybody."""
        self._ahead.s += seconds
        self._move(boot=seconds, wall=seconds, monotonic=seconds)

    def _move(self, **seconds: float) -> None:
        for each in self._guided:
            if each.process.poll() is None:
                each.ask("move", seconds)

    def is_good(self, token: str) -> bool:
        """Whether the API takes a token, by the clock that is right."""
        host = self.sandbox.origin.removeprefix("http://")
        with contextlib.closing(http.client.HTTPConnection(host, timeout=10)) as client:
            client.request("GET", "/v1/models", headers={"authorization": f"Bearer {token}"})
            answer = client.getresponse()
            answer.read()
            return answer.status == 200

    def token(self) -> str:
        """What the file says."""
        return str(self.document()["access_token"])

    def date_ms(self) -> int:
        """qwen-code reads the file again when this has grown."""
        return self.paths.document.stat().st_mtime_ns // 1_000_000

    def assert_nothing_sent(self) -> None:
        assert [each for each in self.sandbox.requests if each.route == "token"] == []

    def assert_in_step(self) -> None:
        """The journal has what the file has, and nothing is left over."""
        received = self.journal()["received"]
        assert received["document"] == self.document()
        assert received["published"]
        assert self.left_over() == []
        self.assert_sound()


@pytest.fixture
def world() -> Iterator[World]:
    ahead = Ahead()
    # Not below pytest's directory: each pytest that starts closes that to ordinary users.
    with Sandbox(clock=ahead.now) as sandbox, tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory) / "shared", sandbox, ahead)
        yield world
        world.close()


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life_s", "state"),
    [(HOUR_S + 600, "stale"), (HOUR_S + 60, "expiring"), (HOUR_S - 600, "expired")],
    ids=["stale", "expiring", "expired"],
)
def test_a_clock_that_is_set_forward_costs_one_renewal(
    world: World, life_s: float, state: str
) -> None:
    process, old = world.renewed(life_s=life_s)
    date_ms = world.date_ms()

    process.step(HOUR_S)
    assert process.look()["state"] == state
    served = process.current()
    assert process.rest()["state"] == "fresh"

    new = world.token()
    assert new != old
    assert served == (old if state == "stale" else new)
    assert [process.current() for _ in range(3)] == [new] * 3
    assert abs(world.document()["expiry_date"] / 1000 - time.time() - HOUR_S - life_s) < DEADLINE_S
    assert world.date_ms() > date_ms
    process.ask("maintain")
    process.rest()
    assert world.counted() == (2, 0, 0)
    world.assert_in_step()
    assert "differs from this machine's by" in world.stop(process).log


@pytest.mark.parametrize(
    ("left_s", "state", "how"),
    [
        (600.0, "stale", "called"),
        (600.0, "stale", "idle"),
        (60.0, "expiring", "called"),
        (-1.0, "expired", "called"),
    ],
    ids=["stale", "stale-and-idle", "expiring", "expired"],
)
def test_a_clock_that_is_set_back_makes_no_token_live_longer(
    world: World, left_s: float, state: str, how: str
) -> None:
    process, old = world.renewed()
    # From before the step; it is the file's date that moves, as the kernel's clock cannot.
    now_s = time.time()
    os.utime(world.paths.document, (now_s + HOUR_S,) * 2)
    date_ms = world.date_ms()

    process.step(-HOUR_S)
    assert process.look()["state"] == "fresh"
    assert process.current() == old
    world.passes(LIFE_S - left_s)
    assert world.document()["expiry_date"] > (now_s + LIFE_S - left_s - HOUR_S) * 1000  # it says
    assert process.look()["state"] == state
    assert world.is_good(old) == (left_s > 0)
    if how == "idle":
        process.ask("maintain")
        process.rest()
    served = process.current()
    assert world.is_good(served)
    assert process.rest()["state"] == "fresh"

    new = world.token()
    assert new != old
    assert served == (old if (state, how) == ("stale", "called") else new)
    assert [process.current() for _ in range(3)] == [new] * 3
    assert world.date_ms() > date_ms
    assert world.counted() == (2, 0, 0)
    # The same once more, with a token that was fetched by the clock that is wrong.
    world.passes(LIFE_S + 1)
    assert world.is_good(process.current())
    process.rest()
    assert world.counted() == (3, 0, 0)
    assert process.current() == world.token()


@pytest.mark.parametrize(
    ("wall", "how"),
    [(True, "called"), (False, "called"), (False, "idle")],
    ids=["clock-set", "clock-not-set-yet", "clock-not-set-yet-and-idle"],
)
def test_the_first_calls_after_a_sleep_share_one_renewal(
    world: World, wall: bool, how: str
) -> None:
    process, old = world.renewed()

    world.sleep(LIFE_S + HOUR_S, wall=wall)
    assert process.look()["state"] == "expired"
    assert not world.is_good(old)
    if how == "idle":
        process.ask("maintain")
    got = process.ask("current", 8)
    assert process.rest()["state"] == "fresh"

    new = world.token()
    assert new != old
    assert got == [{"token": new}] * 8
    assert world.is_good(new)
    assert world.counted() == (2, 0, 0)
    assert process.current() == new


# --- what cannot be written ----------------------------------------------------------------------


@pytest.fixture
def closed(world: World) -> Iterator[Callable[[str, int], None]]:
    """Takes the right to write from something, until the end at the latest."""
    closed: list[tuple[Path, int]] = []

    def close(name: str, mode: int) -> None:
        path = world.paths.document.parent / name
        closed.append((path, path.stat().st_mode))
        path.chmod(mode)

    yield close
    for path, mode in closed:
        path.chmod(mode)


@pytest.mark.parametrize(
    ("name", "mode", "when"),
    [
        (".", 0o500, "from the start"),
        (".", 0o500, "later"),
        ("oauth_creds.json", 0o400, "from the start"),
        (".qwen-proxy", 0o500, "later"),
    ],
    ids=["directory", "directory-later", "file", "directory-of-ours-later"],
)
def test_what_cannot_be_written_is_not_spent(
    world: World, closed: Callable[[str, int], None], name: str, mode: int, when: str
) -> None:
    if when == "later":
        process, old = world.renewed("ordinary")
        world.passes(LIFE_S - 600)
    else:
        old = world.log_in(left_s=600)["access_token"]
        process = world.guided("ordinary")
    spent = world.counted()
    before = world.document()
    closed(name, mode)

    assert process.current() == old
    told = process.rest()

    assert (told["state"], told["ability"]) == ("stale", "read_only")
    assert told["outcome"] == "read_only"
    assert "the token was not spent" in told["why"]
    assert "read_only" in told["detail"]
    assert "write to" in told["remedy"]
    code, text = world.command("ordinary", "creds", "status")
    assert code == 1
    assert "cannot be renewed (read_only)" in text
    assert f"Let the user who runs qwen-proxy write to {world.paths.document.parent}" in text
    # No renewal, however long it takes; it serves until it expires, and then it says why.
    world.passes(PAUSE_S)
    assert process.current() == old
    process.rest()
    world.passes(600)
    (refused,) = process.ask("current", 1)
    assert refused["code"] == "credentials_expired"
    assert "cannot be written" in refused["text"]
    assert "write to" in refused["remedy"]
    assert process.rest()["outcome"] == "read_only"
    assert world.counted() == spent
    assert len([each for each in world.sandbox.requests if each.route == "token"]) == spent[0]
    assert world.document() == before
    assert world.left_over() == []

    (world.paths.document.parent / name).chmod(0o600 if name.endswith(".json") else 0o700)
    world.passes(PAUSE_S)
    new = process.current()

    told = process.rest()
    assert (told["state"], told["ability"], told["remedy"]) == ("fresh", "refreshable", "")
    assert new == world.token() != old
    assert world.counted() == (spent[0] + 1, 0, 0)
    world.assert_in_step()


# --- what is not where it seems ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["absolute", "relative", "chain"])
def test_a_link_stays_and_what_it_names_is_renewed(world: World, kind: str) -> None:
    vault = world.directory / "vault"
    vault.mkdir(parents=True)
    real, path = vault / "login.json", world.paths.document
    world.log_in(left_s=-5)
    path.rename(real)
    real.chmod(0o644)
    target = Path("../vault/login.json") if kind == "relative" else real
    if kind == "chain":
        (vault / "link").symlink_to(real)
        target = vault / "link"
    path.symlink_to(target)

    process = world.guided()
    for number in (1, 2):
        date_ms = world.date_ms()
        new = process.current()
        process.rest()

        assert path.is_symlink()
        assert path.readlink() == target
        assert (vault / "link").is_symlink() == (kind == "chain")
        assert json.loads(real.read_text())["access_token"] == new == world.token()
        assert not real.is_symlink()
        assert real.stat().st_mode & 0o777 == 0o600
        assert world.date_ms() > date_ms
        assert [name for name in os.listdir(vault) if name.startswith(".")] == []
        assert world.counted() == (number, 0, 0)
        world.assert_in_step()
        world.passes(LIFE_S + 1)


@pytest.fixture
def mounted(world: World, tmp_path: Path) -> Path:
    """The file behind a login that is a mount of its own, as in a container."""
    real = tmp_path / "outside.json"
    write_login(real, world.sandbox.issue(), left_s=-5)
    path = world.paths.document
    path.parent.mkdir(parents=True)
    path.touch()
    world.enter(("--bind", str(real), str(path)))
    return real


def test_a_file_that_is_a_mount_is_rewritten_in_place(world: World, mounted: Path) -> None:
    process = world.guided()
    for number in (1, 2):
        before, date_ms = mounted.stat(), world.date_ms()
        new = process.current()
        process.rest()

        assert json.loads(mounted.read_text())["access_token"] == new == world.token()
        after = mounted.stat()
        assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
        assert after.st_mode & 0o777 == 0o600
        assert world.date_ms() > date_ms
        assert world.counted() == (number, 0, 0)
        world.assert_in_step()
        world.passes(LIFE_S + 1)


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_crash_before_a_rewrite_in_place_is_covered_by_the_journal(
    world: World, mounted: Path, torn: bool
) -> None:
    process = world.guided()
    process.ask("plan", "journaled", "kill")
    process.tell("current", 1)
    assert world.stop(process).code == KILLED
    document = world.journal()["received"]["document"]
    assert not world.journal()["received"]["published"]
    if torn:
        mounted.write_text(json.dumps(document, indent=2)[:100])  # how far it may have come
    inode = mounted.stat().st_ino

    process = world.guided()
    assert process.look()["source"] == "journal"
    assert process.current() == document["access_token"]
    process.ask("maintain")
    process.rest()
    if not torn:
        assert world.document() == document
        assert world.journal()["received"]["published"]
    assert world.counted() == (1, 0, 0)
    world.passes(LIFE_S + 1)
    new = process.current()
    process.rest()
    assert json.loads(mounted.read_text())["access_token"] == new == world.token()
    assert new != document["access_token"]
    assert mounted.stat().st_ino == inode
    assert world.counted() == (2, 0, 0)
    world.assert_in_step()


# --- a disk that is full -------------------------------------------------------------------------


@pytest.fixture
def disk(world: World) -> None:
    """A small disk for the login."""
    directory = world.paths.document.parent
    directory.mkdir(parents=True)
    world.enter(("-t", "tmpfs", "-o", f"{DISK},mode=700", "none", str(directory)))


def enlarge(world: World) -> None:
    """Make a login too large for the room that is left by letting go of a lock."""
    document = {"filling": "x" * 16_384, **world.document()}
    world.paths.document.write_text(json.dumps(document, indent=2))


def make_room(world: World) -> None:
    (world.paths.document.parent / FILLER).unlink()


@pytest.mark.usefixtures("disk")
def test_on_a_full_disk_no_token_is_spent(world: World) -> None:
    old = world.log_in(left_s=600)
    process = world.guided()
    fill(world.paths.document.parent)

    assert process.current() == old["access_token"]
    told = process.rest()

    assert (told["state"], told["ability"]) == ("stale", "read_only")
    assert told["outcome"] == "read_only"
    assert "(the disk is full); the token was not spent" in told["why"]
    world.passes(PAUSE_S)
    process.ask("maintain")
    assert process.rest()["outcome"] == "read_only"
    world.assert_nothing_sent()
    assert world.document()["refresh_token"] == old["refresh_token"]
    assert not world.paths.cli_lock.exists()
    assert world.left_over() == []

    make_room(world)
    world.passes(PAUSE_S)
    process.ask("maintain")
    assert process.rest()["ability"] == "refreshable"
    assert process.current() == world.token() != old["access_token"]
    assert world.counted() == (1, 0, 0)
    world.assert_in_step()
    assert "the disk is full" in world.stop(process).log


@pytest.mark.usefixtures("disk")
def test_a_disk_that_fills_up_before_the_sending_costs_no_token(world: World) -> None:
    old = world.log_in(left_s=600)
    process = world.guided()
    process.ask("plan", "reserved", "fill")

    assert process.current() == old["access_token"]
    told = process.rest()

    assert told["outcome"] == "not_sent"
    assert "the journal cannot be written (No space left on device)" in told["why"]
    world.assert_nothing_sent()
    make_room(world)
    assert world.left_over() == []
    world.passes(PAUSE_S)
    process.ask("maintain")
    assert process.rest()["outcome"] == "ok"
    assert world.counted() == (1, 0, 0)
    world.assert_in_step()


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("point", ["intent", "answered", "journaled"])
def test_what_was_reserved_is_enough_when_the_disk_fills_up(world: World, point: str) -> None:
    old = world.log_in(left_s=-5)
    process = world.guided()
    process.ask("plan", point, "fill")

    new = process.current()
    told = process.rest()

    assert (told["state"], told["outcome"], told["unsaved"]) == ("fresh", "ok", "")
    assert new == world.token() != old["access_token"]
    assert world.journal()["received"]["document"] == world.document()
    assert world.counted() == (1, 0, 0)
    assert world.left_over() == []
    world.assert_sound()
    # Others find it on the disk.
    other = world.guided()
    assert other.current() == new
    make_room(world)
    world.passes(LIFE_S + 1)
    assert other.current() == world.token() != new
    assert world.counted() == (2, 0, 0)


@pytest.mark.usefixtures("disk")
def test_a_login_that_cannot_be_written_is_served_and_written_when_there_is_room(
    world: World,
) -> None:
    old = world.log_in(left_s=-5)
    enlarge(world)
    process = world.guided()
    process.ask("plan", "answered", "spoil", "fill")

    new = process.current()

    assert new != old["access_token"]
    assert world.is_good(new)
    assert world.counted() == (1, 0, 0)
    assert world.token() == old["access_token"]
    assert "received" not in world.journal()
    told = process.look()
    assert told["unsaved"] == "No space left on device"
    assert "not on disk yet (No space left on device)" in told["detail"]
    assert "do not stop this process" in told["remedy"]
    # qwen-code is not kept out, another proxy is: it would spend a token that is spent.
    assert not world.paths.cli_lock.exists()
    code, text = world.command("creds", "status", "--json")
    (row,) = json.loads(text)
    assert code == 1
    assert row["locks"]["proxy"]["pid"] == process.process.pid
    assert process.ask("current", 4) == [{"token": new}] * 4

    make_room(world)
    told = process.rest()

    assert (told["unsaved"], told["outcome"], told["remedy"]) == ("", "ok", "")
    assert world.token() == new == process.current()
    assert world.counted() == (1, 0, 0)
    world.assert_in_step()
    log = world.stop(process).log
    assert "keep this process alive" in log
    assert "is written now" in log


# --- nobody calls --------------------------------------------------------------------------------


def test_an_idle_proxy_renews_its_login_again_and_again(world: World, tmp_path: Path) -> None:
    world.sandbox.control(access_ttl_s=SHORT_LIFE_S)
    world.log_in(left_s=60)
    log = tmp_path / "proxy.log"
    note_log_file(log)
    settings = {
        "PORT": "0",
        "QWEN_PROXY_WORKERS": "1",
        "QWEN_PROXY_SANDBOX": "off",
        "QWEN_PROXY_LOG_FORMAT": "json",
    }
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "gunicorn",
        "-c",
        str(ROOT / "gunicorn.conf.py"),
    ]
    command.append("tests.processes.guided_user:brisk()")
    tokens: list[str] = []

    with Server(command, log, {**world.environment(), **settings}, ROOT) as server:
        end_s = time.monotonic() + DEADLINE_S
        while len(tokens) < 4:
            assert time.monotonic() < end_s, server.text
            document = world.document()
            # At no moment is it anything but good.
            assert document["expiry_date"] > time.time() * 1000
            if document["access_token"] not in tokens:
                tokens.append(document["access_token"])
            time.sleep(0.05)
        assert world.is_good(tokens[-1])

    assert world.counted() == (3, 0, 0)
    world.assert_in_step()
    assert [each for each in world.sandbox.requests if each.route == "chat"] == []
    text = log.read_text()
    assert '"event": "call"' not in text
    assert "Traceback" not in text
    assert "sandbox-at-" not in text
    assert "sandbox-rt-" not in text
