"""Asks the server on this machine, over TCP or a unix socket: for commands, not for calls."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from qwen_wsgi.net import Address

#: The longest answer that is read. A list of a thousand models has half a megabyte.
MAX_BYTES: Final = 4 * 1024 * 1024


#: The state of a listening socket in /proc/net/tcp (`TCP_LISTEN`).
_LISTEN: Final = "0A"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def listeners(port: int, *, proc: Path = Path("/proc")) -> set[int]:
    """The users whose programs listen on a TCP port of this machine; {-1} where that is unknown."""
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6
            continue
        except OSError:
            return {-1}
        for line in lines:
            # Number, local address, remote address, state, two queues, a timer, timeouts, user.
            _, local, _, state, _, _, _, uid, *_ = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                found.add(int(uid))
    return found


def get(
    address: Address,
    path: str,
    *,
    timeout_s: float,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, bytes]:
    """Status and body; of a body that is too long, the beginning.

    Args:
        timeout_s: for the connection, and for each read.

    Raises:
        OSError: no connection, or no answer.
        http.client.HTTPException: the answer is not HTTP.
    """
    client = _connection(address, timeout_s)
    try:
        # Without client keys the server accepts only this machine's names.
        client.request("GET", path, headers={**headers, "Host": "localhost", "Connection": "close"})
        response = client.getresponse()
        return response.status, response.read(MAX_BYTES)
    finally:
        client.close()


def post(
    address: Address, path: str, body: bytes, *, timeout_s: float, headers: Mapping[str, str]
) -> Iterator[tuple[int, Mapping[str, str], bytes]]:
    """Status, headers and a piece of the body, for each piece as it comes; once without a piece at
    first. Arguments and errors as of `get`."""
    client = _connection(address, timeout_s)
    try:
        client.request("POST", path, body, {**headers, "Host": "localhost", "Connection": "close"})
        response = client.getresponse()
        told = {name.lower(): value for name, value in response.getheaders()}
        yield response.status, told, b""
        while piece := response.read1(65536):
            yield response.status, told, piece
    finally:
        client.close()


def _connection(address: Address, timeout_s: float) -> http.client.HTTPConnection:
    if address.path:
        return _UnixConnection(address.path, timeout_s)
    return http.client.HTTPConnection(address.here, address.port, timeout=timeout_s)
