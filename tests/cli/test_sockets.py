"""The sockets that systemd passes to the server."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_wsgi.cli import sockets
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.net import Address
from qwen_wsgi.settings import load
from tests.kit.servers import short_directory

#: Passes sockets as systemd would; returns the environment.
Pass = Callable[..., dict[str, str]]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Pass:
    def give(*given: socket.socket, pid: int | None = None) -> dict[str, str]:
        monkeypatch.setattr(sockets, "_FIRST", given[0].fileno() if given else 3)
        assert [each.fileno() - given[0].fileno() for each in given] == list(range(len(given)))
        return {"LISTEN_FDS": str(len(given)), "LISTEN_PID": str(pid or os.getpid())}

    return give


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "x", "LISTEN_PID": "mine"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "x"},
    ],
    ids=str,
)
def test_mostly_there_are_none(environ: dict[str, str]) -> None:
    if environ.get("LISTEN_PID") == "mine":
        environ = {**environ, "LISTEN_PID": str(os.getpid())}
    assert sockets.passed(environ) == ()


def test_they_are_told_by_their_addresses(give: Pass, tcp: socket.socket) -> None:
    port = tcp.getsockname()[1]

    assert sockets.passed(give(tcp)) == (Address("", "127.0.0.1", port),)
    tcp.getsockname()  # it is still open


def test_one_with_a_path(give: Pass) -> None:
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as server:
        path = str(Path(directory) / "http.sock")
        server.bind(path)
        server.listen()

        assert sockets.passed(give(server)) == (Address(path, "", 0),)


def test_one_that_does_not_listen_is_refused(give: Pass) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        pytest.raises(SettingsError, match=r"is no socket that listens.*ListenStream="),
    ):
        sockets.passed(give(other))


def test_a_file_that_is_not_there_is_refused(give: Pass, tcp: socket.socket) -> None:
    environ = give(tcp)
    tcp.close()

    with pytest.raises(SettingsError, match="is no socket that listens"):
        sockets.passed(environ)


class TestAdopted:
    UNIX = Address("/run/x.sock", "", 0)

    def test_their_address_wins_over_every_setting(self, tmp_path: Path) -> None:
        file = tmp_path / "a.env"
        file.write_text("QWEN_PROXY_BIND=0.0.0.0:8080\nQWEN_PROXY_WORKERS=3\n")
        given = load({"QWEN_PROXY_ENV_FILE": str(file), "QWEN_PROXY_BIND": "0.0.0.0:8080"})

        settings, told = sockets.adopt(given, (self.UNIX,))

        assert (settings.bind_address, settings.workers) == ("unix:/run/x.sock", 3)
        assert told == (
            "systemd listens on unix:/run/x.sock, so the address 0.0.0.0:8080 of the settings has "
            "no effect. Change it with: systemctl edit qwen-proxy.socket"
        )

    @pytest.mark.parametrize("bind", ["unix:/run/x.sock", "127.0.0.1:80", "nonsense"])
    def test_nothing_is_told_of_the_same_address(self, bind: str) -> None:
        of_systemd = (self.UNIX, Address("", "127.0.0.1", 80))

        settings, told = sockets.adopt(load({"QWEN_PROXY_BIND": bind}), of_systemd)

        assert (settings.bind_address, told) == ("unix:/run/x.sock", "")
