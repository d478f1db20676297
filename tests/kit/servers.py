"""Starts gunicorn and nginx with the shipped configuration, and stops them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.kit.processes import free_port

REPO = Path(__file__).resolve().parents[2]
CONF = REPO / "gunicorn.conf.py"
SITE = REPO / "nginx/qwen-proxy.conf"

#: Above what a slow machine needs, below pytest's own limit.
PATIENCE_S = 20.0


def wait_until(condition: Callable[[], Any], what: str, *, within_s: float = PATIENCE_S) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {within_s} s")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float = PATIENCE_S) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Server:
    """A process with a log file that listens on a port or a unix socket."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.log = log
        self.address: str | int = ""
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=out)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not the graceful one, which takes a second or two.
        self.stop(signal.SIGINT)

    @property
    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit status."""
        return self.process.wait(timeout_s)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, with force if it does not; the exit status."""
        if self.process.poll() is None:
            self.send(how)
        try:
            return self.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def wait_for(self, pattern: str, *, within_s: float = PATIENCE_S) -> re.Match[str]:
        """Wait for a line in the log."""

        def look() -> re.Match[str] | None:
            if self.process.poll() is not None:
                # Once more: the line may be the last that it wrote.
                return re.search(pattern, self.text) or self.fail(f"ended; no {pattern!r}")
            return re.search(pattern, self.text)

        try:
            found: re.Match[str] = wait_until(look, repr(pattern), within_s=within_s)
        except AssertionError as error:
            self.fail(str(error))
        return found

    def fail(self, reason: str) -> Any:
        raise AssertionError(f"{reason}\n--- log ---\n{self.text[-6000:]}")

    def connect(self) -> http.client.HTTPConnection:
        """A new client connection."""
        if isinstance(self.address, int):
            return http.client.HTTPConnection("127.0.0.1", self.address, timeout=PATIENCE_S)
        return UnixConnection(self.address)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        with contextlib.closing(self.connect()) as client:
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            return answer.status, answer.read()


def start_gunicorn(
    directory: Path,
    settings: Mapping[str, str] | None = None,
    *,
    unix: bool = False,
    before: list[str] | None = None,
    conf: Path = CONF,
) -> Server:
    """gunicorn with the shipped configuration and the demo application, in `directory`.

    Any Python warning in it is an error, so that a late monkey patching would not stay unseen.
    `before` is put in front of the command; `conf` takes the place of the shipped configuration.
    """
    socket_path = directory / "http.sock"
    shutil.copy(Path(__file__).with_name("demo_app.py"), directory / "demo_app.py")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PYTHONPATH": str(REPO),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PORT": "0",
        "QWEN_PROXY_WORKERS": "1",
        **({"QWEN_PROXY_BIND": f"unix:{socket_path}"} if unix else {}),
        **(settings or {}),
    }
    command = [sys.executable, "-W", "error", "-m", "gunicorn", "-c", str(conf)]
    command += ["--chdir", str(directory), "demo_app:application"]
    server = Server([*(before or []), *command], directory / "gunicorn.log", env, directory)
    if unix:
        server.address = str(socket_path)
    return server


def serving(server: Server) -> Server:
    """Wait until it answers."""
    try:
        listening = server.wait_for(r"Listening at: (?:http://127\.0\.0\.1:(\d+)|unix:)")
        if listening[1]:
            server.address = int(listening[1])
        assert server.get("/")[0] == 200
    except BaseException:
        server.stop()
        raise
    return server


def workers(server: Server) -> set[int]:
    """The pids of the running workers."""
    parent = server.process.pid
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {int(pid) for pid in found}


def nginx_configuration(
    directory: Path, upstream: str | int, port: int, edit: Callable[[str], str] = lambda site: site
) -> Path:
    """A minimal nginx.conf around the shipped site, whose addresses alone are replaced."""
    server = f"unix:{upstream}" if isinstance(upstream, str) else f"127.0.0.1:{upstream}"
    site = SITE.read_text()
    for old, new in (
        ("server unix:/run/qwen-proxy/http.sock", f"server {server}"),
        ("    listen 80;\n", f"    listen 127.0.0.1:{port};\n"),
        ("    listen [::]:80;\n", ""),
        ("/var/log/nginx/", f"{directory}/"),
    ):
        assert old in site, old
        site = site.replace(old, new)
    (directory / "site.conf").write_text(edit(site))
    configuration = directory / "nginx.conf"
    temporary = "".join(
        f"    {name}_temp_path {directory}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # One process, as the tests' own user. gzip as in Debian's nginx.conf, and for every type, to
    # see that the site switches it off.
    configuration.write_text(
        "daemon off;\nmaster_process off;\n"
        f"pid {directory}/nginx.pid;\nerror_log stderr warn;\n"
        "events { worker_connections 256; }\n"
        "http {\n"
        "    gzip on;\n    gzip_types *;\n    gzip_min_length 1;\n"
        f"{temporary}    include {directory}/site.conf;\n"
        "}\n"
    )
    return configuration


def start_nginx(
    directory: Path, upstream: str | int, edit: Callable[[str], str] = lambda site: site
) -> Server:
    """nginx with the shipped site in front of `upstream`."""
    port = free_port()
    configuration = nginx_configuration(directory, upstream, port, edit)
    command = [nginx(), "-e", "stderr", "-c", str(configuration), "-p", str(directory)]
    server = Server(command, directory / "nginx.log", {"PATH": os.environ["PATH"]}, directory)
    server.address = port

    def answers() -> bool:
        if server.process.poll() is not None:
            server.fail("nginx ended")
        with contextlib.suppress(OSError):
            server.get("/")
            return True
        return False

    try:
        wait_until(answers, "nginx answers")
    except BaseException:
        server.stop()
        raise
    return server


def nginx() -> str:
    """The path of nginx, which is not on every user's PATH; empty without one."""
    return shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/sbin") or ""


def chunks(answer: http.client.HTTPResponse) -> Iterator[tuple[float, bytes]]:
    """The events of a stream, each with the time when it came."""
    while line := answer.readline():
        if line.strip():
            yield time.monotonic(), line.strip()


StartServer = Callable[..., Server]


def short_directory() -> contextlib.AbstractContextManager[str]:
    """A directory with a short path: a unix socket's has to fit into 107 bytes."""
    return tempfile.TemporaryDirectory(prefix="qp")
