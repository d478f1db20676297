"""`qwen-proxy login`: what a person, a terminal and a script see of it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import segno

from qwen_wsgi import settings
from qwen_wsgi.cli import login
from qwen_wsgi.credentials.files.document import parse
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.clock import FastClock, fast_sleep


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running
        state = running.state()
    assert state["internal_errors"] == 0, state["last_failure"]


def run(origin: str, **more: Any) -> tuple[int, str, str]:
    """Log in within this process: status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    found = settings.load({**os.environ, "QWEN_OAUTH_BASE_URL": origin})
    options: dict[str, Any] = {"account": None, "json_output": False, "browser": False, **more}
    status = login.run(found, out=out, err=err, clock=FastClock(), sleep=fast_sleep, **options)
    assert "sandbox-at-" not in out.getvalue() + err.getvalue()
    assert "sandbox-rt-" not in out.getvalue() + err.getvalue()
    return status, out.getvalue(), err.getvalue()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


PROGRAM = textwrap.dedent(
    """
    import sys
    from qwen_wsgi import settings
    from qwen_wsgi.cli import interrupts, login
    from tests.fakes.clock import FastClock, fast_sleep
    with interrupts.repeated():
        sys.exit(login.run(
            settings.load(), account=None, json_output="--json" in sys.argv, browser=False,
            out=sys.stdout, err=sys.stderr, clock=FastClock(), sleep=fast_sleep,
        ))
    """
)


def start(
    sandbox: Sandbox, *arguments: str, warnings: str = "error", **more: Any
) -> subprocess.Popen[bytes]:
    """Log in as a process of its own."""
    environ = {"QWEN_OAUTH_BASE_URL": sandbox.origin, "TERM": "xterm", "PYTHONUTF8": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", PROGRAM, *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environ, **more.pop("environ", {})},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )


class Terminal:
    """A terminal in which a login runs."""

    def __init__(self, sandbox: Sandbox, *, columns: int = 100, **environ: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = start(
            sandbox,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            environ=environ,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def read_until(self, mark: str, times: int = 1) -> None:
        while self.shown.count(mark) < times:
            assert self._read(), f"it ended before {mark!r}: {self.shown[-500:]!r}"

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def end(self) -> int:
        """Read what is left; the exit status."""
        while self._read():
            pass
        return self.process.wait(10)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 15)
        assert ready, f"it hangs: {self.shown[-500:]!r}"
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


def saved(home: Path, name: str = "oauth_creds.json") -> Path:
    path = home / ".qwen" / name
    assert parse(path.read_bytes(), None).refresh_token.startswith("sandbox-rt-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path


# --- on a terminal -------------------------------------------------------------------------------


def test_a_person_at_a_terminal(sandbox: Sandbox, home: Path) -> None:
    with Terminal(sandbox) as terminal:
        terminal.read_until("left", times=8)
        sandbox.control(approve="*")
        assert terminal.end() == 0

    shown = terminal.shown
    code = re.search(r"[A-Z]{4}-[A-Z]{4}", shown)
    assert code
    assert f"    {sandbox.origin}/authorize?user_code={code[0]}&client=qwen-code\r\n" in shown
    assert f"must show the code {code[0]}\r\n" in shown
    # The first line of the quiet zone, white on black whatever the terminal's colours are.
    assert re.search(r"\x1b\[97;40m█{30,}\x1b\[0m\r\n", shown)
    assert re.search(r"\r\x1b\[KWaiting for the confirmation, 1[45]:\d\d left", shown)
    # One line that is rewritten, and gone in the end.
    assert re.search(r"\d left\r\x1b\[KWaiting", shown)
    assert re.search(r"\r\x1b\[KLogged in\. The login is in ~/.qwen/oauth_creds\.json", shown)
    assert "closed on 2026-04-15" in shown
    assert "sandbox-at-" not in shown
    assert "Traceback" not in shown
    saved(home)


def test_a_qr_code_can_be_read_back() -> None:
    """Its modules are those of the address: nothing was lost on the way to the terminal."""
    url = "https://chat.qwen.ai/authorize?user_code=ABCD-EFGH&client=qwen-code"
    out = login._Output(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    page = login._Page(out, out, settings.load(), FastClock(), fast_sleep)
    lines = [line[len("\x1b[97;40m") : -len("\x1b[0m")] for line in page._qr(url).split("\n")[:-2]]
    halves = {"█": (0, 0), "▀": (0, 1), "▄": (1, 0), " ": (1, 1)}
    rows = [[halves[c][half] for c in line] for line in lines for half in (0, 1)]

    matrix = segno.make(url, error="l", micro=False).matrix
    inner = [row[2:-2] for row in rows[2 : 2 + len(matrix)]]
    assert inner == [list(row) for row in matrix]
    assert not any(value for row in rows[:2] for value in row)


@pytest.mark.parametrize(("columns", "environ"), [(36, {}), (100, {"PYTHONIOENCODING": "ascii"})])
def test_a_terminal_without_room_or_blocks_gets_no_qr_code(
    sandbox: Sandbox, columns: int, environ: dict[str, str]
) -> None:
    sandbox.control(approve_after_polls=0)
    with Terminal(sandbox, columns=columns, **{"PYTHONUTF8": "0", **environ}) as terminal:
        assert terminal.end() == 0

    assert "█" not in terminal.shown
    assert "\x1b[97" not in terminal.shown
    # The countdown does not wrap, or rewriting it would fill the screen.
    lines = re.findall(r"\x1b\[K(Waiting[^\r\n]*)", terminal.shown)
    assert lines
    assert all(len(line) < columns for line in lines)


def test_a_dumb_terminal_gets_plain_lines(sandbox: Sandbox) -> None:
    sandbox.control(approve_after_polls=0)
    with Terminal(sandbox, TERM="dumb") as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.shown
    assert re.search(r"Waiting for the confirmation, 1[45]:\d\d left\.\r\n", terminal.shown)


def test_ctrl_c_at_a_terminal(sandbox: Sandbox, home: Path) -> None:
    with Terminal(sandbox) as terminal:
        terminal.read_until("left", times=4)
        terminal.press_ctrl_c()
        assert terminal.end() == login.EXIT_CANCELLED

    assert terminal.shown.endswith("\r\x1b[Kqwen-proxy: cancelled.\r\n")
    assert "Traceback" not in terminal.shown
    assert os.listdir(home / ".qwen") == []


def test_trouble_is_shown_beside_the_countdown(sandbox: Sandbox) -> None:
    with Terminal(sandbox) as terminal:
        terminal.read_until("left", times=3)
        sandbox.stop()
        terminal.read_until("left: offline, trying again (127.0.0.1:")
        sandbox.start()
        sandbox.control(approve="*")
        assert terminal.end() == 0


# --- into a pipe ---------------------------------------------------------------------------------


def test_plain_lines_into_a_pipe(sandbox: Sandbox, home: Path) -> None:
    sandbox.control(approve_after_polls=33)
    with start(sandbox) as process:
        out, err = process.communicate(timeout=20)

    text = out.decode()
    assert (process.returncode, err) == (0, b"")
    assert "\x1b" not in text
    assert "█" not in text
    assert f"{sandbox.origin}/authorize?user_code=" in text
    # Once a minute, not once a second.
    assert 2 <= len(re.findall(r"Waiting for the confirmation, \d+:\d\d left\.\n", text)) < 8
    saved(home)


def test_one_object_a_line_for_scripts(sandbox: Sandbox, home: Path) -> None:
    sandbox.control(slow_down_polls=1, approve_after_polls=2)
    with start(sandbox, "--json") as process:
        out, err = process.communicate(timeout=20)

    code, slow, pending, success = events(out.decode())
    assert (process.returncode, err) == (0, b"")
    assert code["event"] == "code"
    assert code["user_code"] in code["url"]
    assert 600 < code["left_s"] <= 900
    assert "2026-04-15" in code["warning"]
    assert (slow["event"], slow["interval_s"]) == ("slow_down", 3)
    assert pending["event"] == "pending"
    assert 600 < pending["left_s"] < 896
    path = saved(home)
    assert success == {
        "event": "success",
        "exit_code": 0,
        "account": None,
        "file": str(path),
        "resource_url": sandbox.origin,
        "expires_at_ms": json.loads(path.read_text())["expiry_date"],
    }


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_an_interrupt_ends_it_cleanly(
    sandbox: Sandbox, home: Path, arguments: tuple[str, ...]
) -> None:
    # Without warnings, as people run it: Python makes one of a socket that it had just opened.
    with start(sandbox, *arguments, warnings="ignore") as process:
        assert process.stdout
        process.stdout.readline()
        assert sandbox.wait_until(lambda: sandbox.state()["oauth"]["device_polls"] > 0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)

    assert process.returncode == 130
    if arguments:
        assert events(out.decode())[-1] == {"event": "cancelled", "exit_code": 130}
        assert err == b""
    else:
        assert err == b"qwen-proxy: cancelled.\n"
    assert os.listdir(home / ".qwen") == []


def test_a_reader_that_goes_away_does_not_lose_the_login(sandbox: Sandbox, home: Path) -> None:
    """`qwen-proxy login --json | head -1`"""
    with start(sandbox, "--json") as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["event"] == "code"
        process.stdout.close()
        assert sandbox.wait_until(lambda: sandbox.state()["oauth"]["device_polls"] > 1)
        sandbox.control(approve="*")
        assert process.wait(20) == 0
        assert process.stderr.read() == b""
    saved(home)


# --- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "status", "event"),
    [
        ({"faults": {"token": "token-error=access_denied"}}, login.EXIT_DENIED, "denied"),
        ({"faults": {"token": "status=401"}}, login.EXIT_EXPIRED, "expired"),
        ({"device_ttl_s": 3}, login.EXIT_EXPIRED, "expired"),
        ({"faults": {"device": "html-200"}}, login.EXIT_BLOCKED, "blocked"),
        ({"faults": {"token": "html-200"}}, login.EXIT_BLOCKED, "blocked"),
        ({"faults": {"device": "status=500"}}, login.EXIT_SERVER_ERROR, "server_error"),
        ({"faults": {"token": "html-502"}}, login.EXIT_SERVER_ERROR, "server_error"),
    ],
)
def test_each_end_has_its_status_and_its_words(
    sandbox: Sandbox, home: Path, control: dict[str, Any], status: int, event: str
) -> None:
    sandbox.control(control)
    code, out, err = run(sandbox.origin)

    assert code == status
    first, remedy = err.splitlines()
    assert first.startswith("qwen-proxy: ")
    assert remedy.endswith(".")

    code, out, err = run(sandbox.origin, json_output=True)
    *_, last = events(out)
    assert (code, err) == (status, "")
    assert (last["event"], last["exit_code"]) == (event, status)
    assert last["message"]
    assert last["remedy"]
    assert os.listdir(home / ".qwen") == []


def test_offline(sandbox: Sandbox) -> None:
    origin = sandbox.origin
    sandbox.stop()

    code, out, err = run(origin)
    assert (code, out) == (login.EXIT_OFFLINE, "")
    assert "Connection refused" in err

    code, out, _ = run(origin, json_output=True)
    (last,) = events(out)
    assert (code, last["event"]) == (login.EXIT_OFFLINE, "offline")


def test_trouble_that_passes_is_an_event(sandbox: Sandbox) -> None:
    sandbox.control(approve_after_polls=0, next={"spec": "html-502", "route": "token"})

    code, out, _ = run(sandbox.origin, json_output=True)
    assert code == 0
    assert [e["event"] for e in events(out)] == ["code", "retrying", "success"]
    assert events(out)[1]["why"] == "server_error"
    assert "status 502" in events(out)[1]["detail"]


def test_a_place_that_cannot_be_written_is_told_before_the_login(
    sandbox: Sandbox, home: Path
) -> None:
    (home / ".qwen").write_text("")

    code, out, err = run(sandbox.origin)
    assert (code, out) == (login.EXIT_NOT_SAVED, "")
    assert "cannot be saved" in err
    assert not sandbox.requests


@pytest.mark.parametrize(
    ("account", "origin", "words"),
    [
        ("No Name", "https://chat.qwen.ai", "account name 'No Name' cannot be used"),
        ("", "https://chat.qwen.ai", "account name ''"),
        (None, "http://chat.qwen.ai", "QWEN_OAUTH_BASE_URL cannot be used: it is plain http"),
        (None, "chat.qwen.ai", "QWEN_OAUTH_BASE_URL"),
    ],
)
def test_what_the_operator_must_correct(account: str | None, origin: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        run(origin, account=account)


# --- where it goes -------------------------------------------------------------------------------


def test_an_account_has_a_file_of_its_own(sandbox: Sandbox, home: Path) -> None:
    sandbox.control(approve_after_polls=0)

    code, out, _ = run(sandbox.origin, account="work")
    assert code == 0
    assert "~/.qwen/oauth_creds_work.json" in out
    saved(home, "oauth_creds_work.json")

    _, out, _ = run(sandbox.origin, account="work", json_output=True)
    assert events(out)[-1]["account"] == "work"
    assert sorted(os.listdir(home / ".qwen")) == [".qwen-proxy", "oauth_creds_work.json"]


@pytest.mark.parametrize("place", ["environment", "file"])
def test_qwen_home_is_obeyed(
    sandbox: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("QWEN_HOME", "~/elsewhere")
    else:
        (home / ".env").write_text("QWEN_HOME=~/elsewhere\n")
    sandbox.control(approve_after_polls=0)

    assert run(sandbox.origin)[0] == 0
    assert sorted(os.listdir(home / "elsewhere")) == [".qwen-proxy", "oauth_creds.json"]
    assert not (home / ".qwen").exists()


def test_a_second_login_keeps_what_others_wrote(sandbox: Sandbox, home: Path) -> None:
    sandbox.control(approve_after_polls=0)
    (home / ".qwen").mkdir()
    path = home / ".qwen" / "oauth_creds.json"
    path.write_text('{"note": 1, "access_token": "old"}')

    assert run(sandbox.origin)[0] == 0
    assert list(json.loads(saved(home).read_text()))[:2] == ["note", "access_token"]


@pytest.mark.parametrize(("works", "words"), [(True, ""), (False, "No browser could be opened")])
def test_a_browser_opens_only_when_asked_for(sandbox: Sandbox, works: bool, words: str) -> None:
    sandbox.control(approve_after_polls=0)
    opened: list[str] = []

    def open_browser(url: str) -> bool:
        opened.append(url)
        return works

    run(sandbox.origin, open_browser=open_browser)
    assert opened == []

    _, out, _ = run(sandbox.origin, browser=True, open_browser=open_browser)
    assert opened[0].startswith(f"{sandbox.origin}/authorize?user_code=")
    assert ("No browser" in out) is not works

    _, out, _ = run(sandbox.origin, browser=True, json_output=True, open_browser=open_browser)
    assert events(out)[1] == {"event": "browser", "opened": works}
