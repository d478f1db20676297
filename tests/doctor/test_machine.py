"""The real machine, as far as tests can have one."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from qwen_wsgi import net
from qwen_wsgi.doctor.machine import Machine
from tests.kit.certificates import self_signed
from tests.kit.privileges import as_ordinary_user
from tests.kit.secrets import secret

KEY = secret("doctor-machine")


@pytest.fixture
def machine() -> Machine:
    return Machine({"PATH": os.environ["PATH"], "DASHSCOPE_API_KEY": KEY})


def test_clocks(machine: Machine) -> None:
    assert abs(machine.now() - time.time()) < 5
    assert machine.boottime() >= machine.monotonic() - 5


def test_users(machine: Machine) -> None:
    assert machine.user(0) == "root"
    assert machine.user(3_999_999_999) == "3999999999"
    assert machine.in_group("root", "root") is True
    assert machine.in_group("nobody-of-the-name", "root") is None
    assert machine.in_group("root", "no-such-group") is None


def test_files(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "closed"
    path.write_text("")
    path.chmod(0)
    with as_ordinary_user(tmp_path):
        assert machine.may(tmp_path, os.R_OK | os.W_OK)
        assert not machine.may(path, os.R_OK)
    assert machine.room(tmp_path).bytes > 0
    with pytest.raises(OSError, match="No such file"):
        machine.room(tmp_path / "none")
    assert machine.open_files()[0] != 0


def test_the_file_system_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "proc/self/mounts"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nnas:/x /srv/my\\040home nfs4 rw 0 0\nx /srv tmpfs rw 0 0\n"
    )
    machine = Machine({}, root=tmp_path)

    assert machine.filesystem(Path("/srv/my home/.qwen")) == "nfs4"
    assert machine.filesystem(Path("/srvother")) == "ext4"
    assert Machine({}, root=tmp_path / "none").filesystem(Path("/")) == ""


class TestPrograms:
    def test_one_that_is_there(self, machine: Machine) -> None:
        assert machine.program("sh") is not None
        assert machine.program("no-such-program-anywhere") is None

    def test_it_gets_none_of_our_secrets(self, machine: Machine) -> None:
        done = machine.run(["sh", "-c", "env; echo oops >&2; exit 3"], timeout_s=20)

        assert (done.status, done.err) == (3, "oops\n")
        assert "LC_ALL=C\n" in done.out
        assert KEY not in done.out

    def test_it_takes_too_long(self, machine: Machine) -> None:
        command = [sys.executable, "-c", "import time; time.sleep(30)"]
        with pytest.raises(TimeoutError, match="took longer than"):
            machine.run(command, timeout_s=0.2)

    def test_it_cannot_be_run(self, machine: Machine) -> None:
        with pytest.raises(FileNotFoundError):
            machine.run(["/no/such/program"], timeout_s=1)


@contextmanager
def serving(listener: socket.socket, answer: bytes) -> Iterator[list[bytes]]:
    """Answers one connection."""
    got: list[bytes] = []

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # of the TLS handshake
        # Who only looks at the certificate closes the connection with bytes unread.
        with connection, suppress(ConnectionResetError):
            got.append(connection.recv(65536))
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield got
    finally:
        thread.join(10)
        listener.close()


ANSWER = b"HTTP/1.1 503 Oh\r\ncontent-length: 2\r\n\r\n{}"


class TestNetwork:
    def test_a_name(self, machine: Machine) -> None:
        assert machine.resolve("127.0.0.1", 80) == ("127.0.0.1",)
        with pytest.raises(OSError, match="."):
            machine.resolve("", 0)  # no resolver is asked

    def test_a_connection(self, machine: Machine) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        machine.connect("127.0.0.1", port, timeout_s=5)
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            machine.connect("127.0.0.1", port, timeout_s=5)

    def test_get_over_tcp(self, machine: Machine) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        bind = net.parse(f"0.0.0.0:{listener.getsockname()[1]}")
        with serving(listener, ANSWER) as got:
            assert machine.get(bind, "/health", timeout_s=5) == (503, b"{}")
        assert got[0].startswith(b"GET /health HTTP/1.1\r\n")
        assert b"\r\nHost: localhost\r\n" in got[0]

    def test_get_over_a_unix_socket(self, machine: Machine, tmp_path: Path) -> None:
        bind = net.parse(f"unix:{tmp_path}/http.sock")
        with pytest.raises(FileNotFoundError):
            machine.get(bind, "/health", timeout_s=5)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(bind.path)
        listener.listen()
        with serving(listener, ANSWER):
            assert machine.get(bind, "/health", timeout_s=5) == (503, b"{}")

    def test_no_http(self, machine: Machine) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        bind = net.parse(f"127.0.0.1:{listener.getsockname()[1]}")
        with serving(listener, b"SSH-2.0-x\r\n"), pytest.raises(http.client.HTTPException):
            machine.get(bind, "/health", timeout_s=5)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
class TestCertificates:
    @pytest.fixture
    def listener(self, tmp_path: Path) -> socket.socket:
        path = self_signed(tmp_path / "certificate", "IP:127.0.0.1", days=5)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)

    def test_when_it_ends(self, tmp_path: Path, listener: socket.socket) -> None:
        machine = Machine({"REQUESTS_CA_BUNDLE": f"{tmp_path}/certificate"})
        port = listener.getsockname()[1]
        with serving(listener, b""):
            end_s = machine.certificate_end("127.0.0.1", port, timeout_s=5)

        assert 4.9 * 86_400 < end_s - time.time() < 5.1 * 86_400

    def test_it_is_not_trusted(self, machine: Machine, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        with serving(listener, b""), pytest.raises(ssl.SSLCertVerificationError):
            machine.certificate_end("127.0.0.1", port, timeout_s=5)
