"""Debian's `redis-server`, started for a test: on a unix socket in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType

import pytest

from tests.kit.processes import free_port
from tests.kit.servers import wait_until

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server") or ""

#: It ends with the tests, also when they are killed (util-linux; every Debian has it).
_WITH_US = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []

needs_redis = pytest.mark.skipif(
    not PROGRAM, reason="redis-server is not installed (apt-get install redis-server)"
)


class RedisServer:
    """A Redis that keeps nothing on the disk. Its data are gone after `restart`.

    Args:
        directory: of its own; short enough for the path of a socket.
        tcp: also on a port of this machine; a unix socket alone is quicker.
        password: that it asks for.
        certificate: for TLS on a port in the place of plain TCP: certificate and key in one file,
            which clients have to trust.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tcp: bool = False,
        password: str = "",
        certificate: Path | None = None,
    ) -> None:
        self._directory = directory
        self.socket = directory / "redis.sock"
        self.port = free_port() if tcp or certificate else 0
        self._certificate = certificate
        self.password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As QWEN_PROXY_REDIS_URL."""
        user = f":{self.password}@" if self.password else ""
        if self._certificate is not None:
            return f"rediss://{user}localhost:{self.port}/0?ssl_ca_certs={self._certificate}"
        if self.port:
            return f"redis://{user}127.0.0.1:{self.port}/0"
        return f"unix://{user}{self.socket}"

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [*_WITH_US, PROGRAM, "--bind", "127.0.0.1"]
        if self._certificate is None:
            command += ["--port", str(self.port)]
        else:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            for name in ("cert", "key", "ca-cert"):
                command += [f"--tls-{name}-file", str(self._certificate)]
        command += ["--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self._directory)]
        if self.password:
            command += ["--requirepass", self.password]
        with (self._directory / "redis.log").open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        wait_until(self._answers, "Redis answers", within_s=5.0)

    def _answers(self) -> bool:
        import redis

        if self._process is None or self._process.poll() is not None:
            raise AssertionError((self._directory / "redis.log").read_text()[-1000:])
        client = redis.Redis(unix_socket_path=str(self.socket), password=self.password or None)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
            client.connection_pool.disconnect()

    def send(self, number: signal.Signals) -> None:
        """Stop it where it is (SIGSTOP), or let it go on (SIGCONT)."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, also one that is stopped; harmless when repeated."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(5.0)

    def restart(self) -> None:
        """End it and start it anew, without its data."""
        self.kill()
        self.start()

    def command(self, *words: str) -> object:
        """Send one command; its answer."""
        import redis

        client = redis.Redis(unix_socket_path=str(self.socket), password=self.password or None)
        try:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]  # of the package
        finally:
            client.close()
            client.connection_pool.disconnect()
