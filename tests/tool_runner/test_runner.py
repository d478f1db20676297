"""The runner as a process: what workers see of it, and what is left when it is killed."""

from __future__ import annotations

import json
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.tool_runner import wire
from qwen_wsgi.tools import runner_client
from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool
from qwen_wsgi.tools.runner_client import RunnerClient
from tests.kit.processes import REPOSITORY, is_running, tree
from tests.kit.runners import Runner, running
from tests.kit.sandboxes import open_folder, processes_with, without_sandbox

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

SERVER = REPOSITORY / "tests/kit/mcp_server.py"
PYTHON = ServerTool("python", "run", "", {}, trust=False)

needs_sandbox = pytest.mark.skipif(bool(without_sandbox()), reason=without_sandbox())


def weather(marker: str, **more: object) -> dict[str, Any]:
    """The entry of a server that stands in an open folder, as every user can read it."""
    folder = f"/tmp/{marker}"
    return {
        "command": "/usr/bin/python3",
        "args": [f"{folder}/mcp_server.py", "weather"],
        "env": {"MARK": marker},
        "read": [folder],
        **more,
    }


@pytest.fixture(scope="module")
def marker() -> Iterator[str]:
    """A folder below /tmp with the server, and its name, by which its processes are found."""
    name = f"mark-{uuid.uuid4().hex}"
    with open_folder(name) as folder:
        (folder / "mcp_server.py").write_bytes(SERVER.read_bytes())
        yield name


@pytest.fixture(scope="module")
def runner(marker: str) -> Iterator[Runner]:
    tools = {
        "mcpServers": {
            "weather": weather(marker, trust=True),
            "missing": {"command": "/usr/bin/no-such-program"},
            "shown": {"command": "/usr/bin/true", "read": [f"/tmp/{marker}/../"]},
            "away": {"httpUrl": "http://127.0.0.1:9/mcp"},
            "clock": {"from": "qwen-code"},
        },
        "python": {"env": {"MARK": marker}},
        "fetch": {},
    }
    with running(tools) as one:
        yield one


def until_offered(client: RunnerClient, server: str) -> ServerTool:
    end_s = time.monotonic() + 90
    while True:
        client._listed = None
        with suppress(RunnerUnavailable):  # of a machine that is busy
            for each in client.offered():
                if each.server == server:
                    return each
        assert time.monotonic() < end_s, client.troubles()
        time.sleep(0.1)


@needs_sandbox
def test_the_tools_are_listed_and_called(runner: Runner) -> None:
    client = runner.client()
    tool = until_offered(client, "weather")

    result = client.call(tool, {"city": "Oslo"}, seconds=10)

    assert (tool.name, tool.trust, tool.schema["required"]) == ("weather", True, ["city"])
    assert result.text == "weather says: sun over Oslo"
    assert client.call(PYTHON, {"code": "6 * 7"}, seconds=20).text == "42"
    assert stat.S_IMODE(runner.socket.stat().st_mode) == 0o600


@needs_sandbox
def test_a_server_in_trouble_says_why_and_others_work(runner: Runner) -> None:
    client = runner.client()
    until_offered(client, "python")

    troubles = client.troubles()

    assert troubles.keys() == {"missing", "shown", "away", "clock"}
    assert "no-such-program: No such file" in troubles["missing"]
    assert "would show" in troubles["shown"]
    assert "cannot be reached" in troubles["away"]
    assert "settings.json cannot be read" in troubles["clock"]
    checked = client.check()
    assert {label for label, why in checked.items() if not why} == {"weather", "python", "fetch"}


@needs_sandbox
def test_a_server_that_crashes_fails_its_call_and_comes_back(runner: Runner) -> None:
    client = runner.client()
    tool = until_offered(client, "weather")

    crashed = client.call(tool, {"no": "city"}, seconds=10)

    assert crashed.is_error
    assert "ended while it ran the tool" in crashed.text
    again = until_offered(client, "weather")
    assert client.call(again, {"city": "Rome"}, seconds=10).text.endswith("Rome")


@needs_sandbox
def test_fifty_calls_at_a_time(runner: Runner, marker: str) -> None:
    client = runner.client()
    tool = until_offered(client, "weather")

    def one(number: int) -> str:
        if number % 5 == 0:
            return client.call(PYTHON, {"code": str(number)}, seconds=60).text
        return client.call(tool, {"city": str(number)}, seconds=60).text.split()[-1]

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == [str(number) for number in range(50)]
    # The server's own processes stay; no interpreter does, and nobody waits to be collected.
    wait_for(lambda: len([each for each in processes_with(marker) if "python" in each]) <= 3)
    states = [Path(f"/proc/{each}/stat").read_text() for each in tree(runner.process.pid)]
    assert not [each for each in states if ") Z " in each]


@needs_sandbox
def test_whoever_leaves_has_his_call_cancelled(runner: Runner, marker: str) -> None:
    until_offered(runner.client(), "python")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(runner.socket))
        arguments = {"code": "import os; os.execvp('sleep', ['sleep', '61'])"}
        call = {"do": "call", "id": "a", "server": "python", "tool": "run", "seconds": 60}
        asking.sendall(wire.line({**call, "arguments": arguments}))
        wait_for(lambda: [each for each in processes_with(marker) if "sleep" in each])

    wait_for(lambda: not [each for each in processes_with(marker) if "sleep" in each])


@needs_sandbox
def test_a_call_is_cancelled_by_its_id(runner: Runner) -> None:
    until_offered(runner.client(), "python")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(runner.socket))
        asking.settimeout(20)
        call = {"do": "call", "server": "python", "tool": "run", "seconds": 60}
        slow = {"code": "import time; time.sleep(60)"}
        asking.sendall(wire.line({**call, "id": "slow", "arguments": slow}))
        asking.sendall(wire.line({"do": "cancel", "id": "slow"}))
        asking.sendall(wire.line({**call, "id": "next", "arguments": {"code": "1"}}))
        answer = json.loads(asking.makefile("rb").readline())

    assert (answer["id"], answer["text"]) == ("next", "1")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"no JSON\n", "not JSON"),
        (b"[]\n", "not an object"),
        (b'{"do": "everything"}\n', "nothing that this server does"),
        (b'{"do": "call", "server": "python"}\n', "missing or wrong"),
        (b'{"do": "call", "server": "x", "tool": "y", "arguments": {}, "seconds": 1}\n', "named"),
    ],
)
def test_a_wrong_question_is_answered(runner: Runner, line: bytes, told: str) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(runner.socket))
        asking.settimeout(20)
        asking.sendall(line)
        answer = asking.makefile("rb").readline().decode()

    assert told in answer


def test_a_line_without_an_end_is_refused(runner: Runner) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(runner.socket))
        asking.settimeout(20)
        answers = asking.makefile("rb")
        try:
            for _ in range(40):
                asking.sendall(b"x" * (1 << 20))
        except (BrokenPipeError, ConnectionResetError):
            return
        assert b"longer than" in answers.readline()


@needs_sandbox
def test_a_reload_changes_the_tools_unless_they_cannot_be_used(marker: str) -> None:
    with running({"fetch": {}}) as one:
        client = one.client()
        until_offered(client, "fetch")
        one.tools_file.write_text("{")
        one.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the tools stay as they were" in one.log.read_text())
        until_offered(client, "fetch")

        one.write({"mcpServers": {"weather": weather(marker)}})
        one.process.send_signal(signal.SIGHUP)

        until_offered(client, "weather")
        assert {each.server for each in client.offered()} == {"weather"}


def test_a_runner_that_hangs_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_client, "_LIST_S", 1.0)
    client = RunnerClient(lambda: path, SystemClock())

    def told(_: int) -> str:
        with pytest.raises(RunnerUnavailable) as caught:
            client.offered()
        return caught.value.reason

    with (
        open_folder() as folder,
        socket.socket(socket.AF_UNIX) as hangs,
        ThreadPoolExecutor(5) as threads,
    ):
        path = str(folder / "tools.sock")
        hangs.bind(path)
        hangs.listen()
        began_s = time.monotonic()
        reasons = list(threads.map(told, range(5)))

        assert time.monotonic() - began_s < 3
    assert len(set(reasons)) == 1
    assert "does not answer" in reasons[0]


@needs_sandbox
def test_what_is_secret_since_a_reload_is_not_logged_either() -> None:
    told = {"TOKEN": "a-token-since-the-reload"}
    tells = ["-c", "echo the token is $TOKEN >&2; exit 3"]
    with running({"fetch": {}}) as one:
        until_offered(one.client(), "fetch")
        one.write({"mcpServers": {"x": {"command": "/bin/sh", "args": tells, "env": told}}})
        one.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the token is" in one.log.read_text())

        assert told["TOKEN"] not in one.log.read_text()


@needs_sandbox
def test_killed_in_a_call_it_is_told_and_the_next_call_works(marker: str) -> None:
    with running({"python": {"env": {"MARK": marker}}}) as one:
        client = one.client()
        tool = until_offered(client, "python")
        killer = threading.Timer(1.0, one.process.kill)
        killer.start()
        with pytest.raises(RunnerUnavailable, match="in the middle of the call"):
            client.call(tool, {"code": "import time; time.sleep(60)"}, seconds=60)
        one.process.wait(10)
        with pytest.raises(RunnerUnavailable, match="nobody listens"):
            client.call(tool, {"code": "1"}, seconds=60)

        one.restart()

        until_offered(client, "python")
        assert client.call(tool, {"code": "1"}, seconds=60).text == "1"


@needs_sandbox
def test_killed_at_any_moment_nothing_stays() -> None:
    """Also while bubblewrap starts: every process is found by a mark in its environment or its
    command line, not by its parents."""
    mark = f"mark-{uuid.uuid4().hex}"
    draw = random.Random(7)
    with running({"python": {"env": {"MARK": mark}}}) as one:
        tool = until_offered(one.client(), "python")
        for round in range(8):
            with ThreadPoolExecutor(6) as pool:
                code = "import subprocess\nsubprocess.run(['setsid', 'sleep', '61'])"
                for _ in range(6):
                    pool.submit(_ignored, one.client(), tool, code)
                # A sandbox takes about 200 ms to start.
                time.sleep(draw.uniform(0.0, 0.4))
                # With those that were started by it and have not yet become what they shall be.
                own = tree(one.process.pid)[1:]
                one.process.kill()
                one.process.wait(10)
            wait_for(lambda: not processes_with(mark), seconds=5, told=lambda: processes_with(mark))
            wait_for(lambda: not any(map(is_running, own)), seconds=5)  # noqa: B023
            if round < 7:
                one.restart()
                until_offered(one.client(), "python")


def test_it_ends_with_its_parent() -> None:
    with open_folder() as folder:
        (folder / "tools.json").write_text('{"fetch": {}}')
        code = (
            "import os, subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-m', 'qwen_wsgi.tool_runner',"
            " '--parent', str(os.getpid())])\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                "HOME": str(folder),
                "QWEN_PROXY_TOOLS": str(folder / "tools.json"),
                "QWEN_PROXY_STATE_DIR": str(folder),
            },
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert parent.stdout
        child = int(parent.stdout.readline())
        wait_for(lambda: (folder / "tools.sock").exists())

        parent.kill()
        parent.wait()
        parent.stdout.close()

        wait_for(lambda: not is_running(child))
        assert not (folder / "tools.sock").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "it is not JSON"), ('{"pyton": {}}', 'did you mean "python"?'), (None, "No such file")],
)
def test_a_file_that_cannot_be_used_ends_the_start(text: str | None, told: str) -> None:
    with open_folder() as folder:
        if text is not None:
            (folder / "tools.json").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "qwen_wsgi.tool_runner"],
            env={
                "HOME": str(folder),
                "QWEN_PROXY_TOOLS": str(folder / "tools.json"),
                "QWEN_PROXY_STATE_DIR": str(folder),
            },
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
        )

    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def wait_for(found: Any, *, seconds: float = 20.0, told: Any = lambda: "") -> None:
    end_s = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end_s, told()
        time.sleep(0.05)


def _ignored(client: RunnerClient, tool: ServerTool, code: str) -> None:
    with suppress(RunnerUnavailable):
        client.call(tool, {"code": code}, seconds=30)
