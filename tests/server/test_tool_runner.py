"""`serve` and the runner of tools: who starts it, who starts it anew, and who ends it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool
from qwen_wsgi.tools.runner_client import RunnerClient
from tests.kit.processes import tree
from tests.kit.proxy import Proxy, start
from tests.kit.sandboxes import without_sandbox
from tests.kit.servers import wait_until

pytestmark = pytest.mark.server

PYTHON = ServerTool("python", "run", "", {}, trust=False)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("tools")
    file = folder / "tools.json"
    file.write_text(json.dumps({"python": {}, "fetch": {}}))
    environment = {
        "QWEN_PROXY_SANDBOX": "1",
        "QWEN_PROXY_WORKERS": "1",
        "QWEN_PROXY_TOOLS": str(file),
    }
    running = start(folder, environment)
    yield running
    running.stop()


def runners(pid: int) -> list[int]:
    found = []
    for each in tree(pid):
        with suppress(OSError):
            words = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
            if b"qwen_wsgi.tool_runner" in words:
                found.append(each)
    return found


def client_of(proxy: Proxy) -> RunnerClient:
    socket = proxy.home / ".local/state/qwen-proxy/tools.sock"
    return RunnerClient(lambda: str(socket), SystemClock())


def offered(proxy: Proxy) -> set[str]:
    try:
        return {each.server for each in client_of(proxy).offered()}
    except RunnerUnavailable:
        return set()


def test_it_is_started_and_holds_none_of_the_servers_files(proxy: Proxy) -> None:
    wait_until(lambda: "fetch" in offered(proxy), "the tools")

    (runner,) = runners(proxy.process.pid)

    port = f"{proxy.port:04X}"
    listening = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()
        if line.split()[1].endswith(f":{port}")
    }
    held = {os.readlink(each) for each in Path(f"/proc/{runner}/fd").iterdir()}
    assert listening
    assert not {f"socket:[{inode}]" for inode in listening} & held


@pytest.mark.skipif(bool(without_sandbox()), reason=without_sandbox())
def test_it_is_started_anew_when_it_is_killed(proxy: Proxy) -> None:
    wait_until(lambda: "python" in offered(proxy), "the interpreter")
    (before,) = runners(proxy.process.pid)

    os.kill(before, signal.SIGKILL)

    wait_until(lambda: runners(proxy.process.pid) not in ([before], []), "the next one")
    wait_until(lambda: "python" in offered(proxy), "the interpreter")
    assert client_of(proxy).call(PYTHON, {"code": "2"}, seconds=20).text == "2"
    assert "the process that runs tools has ended (signal SIGKILL)" in proxy.log.read_text()
    assert "Worker (pid" not in proxy.log.read_text()


def test_it_reads_its_file_anew_at_a_reload(proxy: Proxy) -> None:
    wait_until(lambda: "fetch" in offered(proxy), "the tools")
    (proxy.home.parent / "tools.json").write_text(json.dumps({"fetch": {}}))

    proxy.process.send_signal(signal.SIGHUP)

    wait_until(lambda: offered(proxy) == {"fetch"}, "the file as it is now")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_server(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "tools.json").write_text('{"fetch": {}}')
    environment = {
        "QWEN_PROXY_SANDBOX": "1",
        "QWEN_PROXY_WORKERS": "1",
        "QWEN_PROXY_TOOLS": str(tmp_path / "tools.json"),
    }
    running = start(tmp_path, environment)
    wait_until(lambda: "fetch" in offered(running), "the tools")
    whole = tree(running.process.pid)
    (runner,) = runners(running.process.pid)

    running.process.send_signal(how)
    running.process.wait(20)

    wait_until(lambda: not Path(f"/proc/{runner}/cmdline").exists(), "the runner's end")
    assert not (running.home / ".local/state/qwen-proxy/tools.sock").exists()
    if how == signal.SIGKILL:
        for each in whole[1:]:  # workers end by themselves, some time later
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def test_a_file_that_cannot_be_used_is_told_and_the_server_serves(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('{"pyton": {}}')
    environment = {
        "QWEN_PROXY_SANDBOX": "1",
        "QWEN_PROXY_WORKERS": "1",
        "QWEN_PROXY_TOOLS": str(tmp_path / "tools.json"),
    }
    running = start(tmp_path, environment)
    try:
        wait_until(lambda: 'did you mean "python"?' in running.log.read_text(), "the reason")
        time.sleep(0.1)
        assert running.process.poll() is None
    finally:
        running.stop()
