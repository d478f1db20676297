"""What is soaked: the sandbox, the proxy in front of it, and looking at both from outside."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.kit import open_files, processes
from tests.kit.open_files import OpenFiles
from tests.kit.processes import REPOSITORY, StartError
from tests.soak.clients import CLIENT_KEYS, Line
from tests.soak.probe import SIGNAL, SITECUSTOMIZE

_START_S: Final = 60.0
_STOP_S: Final = 45.0
_KILL_S: Final = 5.0
_ANSWER_S: Final = 20.0


# --- processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def sandbox() -> Iterator[int]:
    """The upstream; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.upstream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise StartError("the sandbox did not start")
        yield int(port)
    finally:
        process.stdin.close()
        try:
            process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@dataclass
class Proxy:
    """A running `qwen-proxy serve`.

    Attributes:
        pids: the workers.
    """

    process: subprocess.Popen[bytes]
    port: int
    upstream_port: int
    home: Path
    pids: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.home / "log"

    def stop(self) -> int | None:
        """Stop it gracefully; its exit status, None if it does not stop."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(_STOP_S)
        return None

    def forget_troubles(self) -> None:
        """Let no account be left alone any more, as if a day had passed."""
        for shared in (self.home / "state").glob("*-*"):
            with shared.open("r+b") as file:
                file.write(bytes(shared.stat().st_size))


@contextlib.contextmanager
def proxy(
    upstream_port: int, *, workers: int, directory: Path, settings: Mapping[str, str]
) -> Iterator[Proxy]:
    """`qwen-proxy serve` with two accounts at the sandbox and its log in a file."""
    port = processes.free_port()
    home = directory / "home"
    probe = directory / "probe"
    for each in (home, probe):
        each.mkdir()
    (probe / "sitecustomize.py").write_text(SITECUSTOMIZE.format(directory=str(directory)))
    origin = f"http://127.0.0.1:{upstream_port}"
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": f"{probe}:{REPOSITORY}",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "QWEN_PROXY_STATE_DIR": str(home / "state"),
        "QWEN_PROXY_WORKERS": str(workers),
        "QWEN_PROXY_API_KEYS": ",".join(CLIENT_KEYS),
        "QWEN_PROXY_LOG_FORMAT": "json",
        "QWEN_PROXY_GRACEFUL_TIMEOUT": "5",
        "QWEN_UPSTREAM_BASE_URL": f"{origin}/v1",
        "QWEN_UPSTREAM_API_KEY": "sk-soak-upstream-0123456789abcdef",
        "DASHSCOPE_BASE_URL": f"{origin}/compatible-mode/v1",
        "DASHSCOPE_API_KEY": "sk-soak-dashscope-0123456789abcdef",
        "QWEN_OAUTH_BASE_URL": origin,
        **settings,
    }
    with (home / "log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen_wsgi.cli", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=REPOSITORY,
            env=env,
            # Ctrl-C reaches this program alone, which then stops the others in order.
            start_new_session=True,
        )
    running = Proxy(process, port, upstream_port, home)
    try:
        _wait_ready(running, workers)
        yield running
    finally:
        processes.stop(process, signal.SIGINT)  # gunicorn's quick stop


def _wait_ready(running: Proxy, workers: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and running.process.poll() is None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            status, _ = ask_health(running.port, "/health/ready", 2.0)
            pids = processes.tree(running.process.pid)[1:]
            if status == 200 and len(pids) == workers:
                running.pids = pids
                return
        time.sleep(0.05)
    raise StartError(f"the proxy did not start:\n{running.log.read_text(errors='replace')[-2000:]}")


# --- looking from outside ------------------------------------------------------------------------


def ask_health(port: int, path: str, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a health check on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Look:
    """One worker, as it is now.

    Attributes:
        in_flight: calls, by its own word.
        files: those that it has open.
        held_kb: proportional set size.
        memory_kb: the same without memory that was free, but for free parts of pages.
        used_kb: what the allocators have given out.
        running: greenlets by what they run.
        objects: Python objects by type, those from before the worker's beginning left out.
        cycles: objects of ours that only the garbage collector could free, by type.
    """

    pid: int
    in_flight: int
    files: OpenFiles
    threads: int
    held_kb: float
    memory_kb: float
    used_kb: float
    running: Mapping[str, int]
    objects: Mapping[str, int]
    cycles: Mapping[str, int]

    @property
    def client_sockets(self) -> int:
        return self.files.client

    @property
    def upstream_sockets(self) -> int:
        return self.files.upstream

    @property
    def other_files(self) -> int:
        return self.files.other.total()

    @property
    def greenlets(self) -> int:
        return sum(self.running.values())


class Lines:
    """Connections to the proxy of which it is known which worker has them; a context manager."""

    def __init__(self, running: Proxy) -> None:
        self._proxy = running
        self._open: list[Line] = []
        self.by_pid: dict[int, list[Line]] = {pid: [] for pid in running.pids}

    async def __aenter__(self) -> Lines:
        return self

    async def __aexit__(self, *_: object) -> None:
        for line in self._open:
            line.close()

    async def open(self, needed: Mapping[int, int]) -> None:
        """Connect until each worker has so many.

        Raises:
            StartError: a worker takes none.
        """
        deadline = time.monotonic() + _ANSWER_S
        while missing := [
            needed[pid] - len(self.by_pid[pid])
            for pid in needed
            if len(self.by_pid[pid]) < needed[pid]
        ]:
            if time.monotonic() > deadline:
                raise StartError(f"a worker takes no connections: {missing} are missing")
            fresh = [await Line.open(self._proxy.port) for _ in range(min(64, sum(missing)))]
            self._open += fresh
            await asyncio.sleep(0.05)
            self._assign()

    def _assign(self) -> None:
        ours = {
            line.writer.get_extra_info("sockname")[1]: line for line in self._open if not line.used
        }
        inodes = {
            f"socket:[{inode}]": ours[remote]
            for local, remote, _, inode in open_files.tcp()
            if local == self._proxy.port and remote in ours
        }
        for pid in self._proxy.pids:
            for name in open_files.names(pid):
                if line := inodes.get(name):
                    line.used = True
                    self.by_pid[pid].append(line)


async def in_flight(running: Proxy) -> dict[int, int]:
    """Calls in flight by each worker's own word."""
    found = {}
    async with Lines(running) as lines:
        await lines.open(dict.fromkeys(running.pids, 1))
        for pid in running.pids:
            line = lines.by_pid[pid][0]
            line.writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            async with asyncio.timeout(_ANSWER_S):
                _, headers = await line.head()
                body = await line.reader.readexactly(int(headers["content-length"]))
            found[pid] = int(json.loads(body)["in_flight"])
    return found


async def idle_files(running: Proxy) -> dict[int, OpenFiles]:
    """What each worker has open at a moment when the watchman is not connected, if there is one."""
    for _ in range(20):
        await asyncio.sleep(0.05)
        found = open_files.look(running.pids, running.port, {running.upstream_port})
        if not any(files.client for files in found.values()):
            break
    return found


async def look(running: Proxy) -> dict[int, Look]:
    """Each worker as it is now. Ask when nobody but the watchman is connected."""
    calls = await in_flight(running)
    files = await idle_files(running)
    held = {pid: processes.memory_kb([pid]) for pid in running.pids}
    counts = {pid: await _counts(running, pid) for pid in running.pids}
    return {
        pid: Look(
            pid=pid,
            in_flight=calls[pid],
            files=files[pid],
            threads=open_files.threads(pid),
            held_kb=held[pid],
            memory_kb=processes.memory_kb([pid]),
            used_kb=counts[pid]["used_kb"],
            running=counts[pid]["greenlets"],
            objects=counts[pid]["objects"],
            cycles=counts[pid]["cycles"],
        )
        for pid in running.pids
    }


async def _counts(running: Proxy, pid: int) -> dict[str, Any]:
    path = running.home.parent / f"counts-{pid}"
    path.unlink(missing_ok=True)
    os.kill(pid, SIGNAL)
    async with asyncio.timeout(_ANSWER_S):
        while not path.exists():
            await asyncio.sleep(0.02)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


class Watchman:
    """Asks for the proxy's health all the time, in a process of its own; a context manager.

    Attributes, once it has been left:
        asked: how often.
        worst_s: the longest time to an answer.
        worst_served_s: the same, without the time in which one of those concerned was ready to run
            and had no CPU. A machine that is busy with something else is no fault of the proxy's.
        faults: answers that were not "ready", and none.
    """

    def __init__(self, running: Proxy) -> None:
        self._arguments = [str(number) for number in (running.port, *running.pids)]
        self._process: subprocess.Popen[str] | None = None
        self.asked = 0
        self.worst_s = 0.0
        self.worst_served_s = 0.0
        self.faults: list[str] = []

    def __enter__(self) -> Watchman:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.watchman", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        try:
            told = process.communicate("", timeout=2 * _ANSWER_S)[0]  # the end of its input
        except subprocess.TimeoutExpired:
            process.kill()
            told = process.communicate()[0]
        with contextlib.suppress(ValueError):
            found = json.loads(told)
            self.asked, self.worst_s = found["asked"], found["worst_s"]
            self.worst_served_s = found["worst_served_s"]
            self.faults = found["faults"]
