"""Multipart uploads by hand: forms in any order, cut where a test wants."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.kit.proxy import Proxy

BOUNDARY = "a-boundary-of-the-test"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
END = f"--{BOUNDARY}--\r\n".encode()


def field(name: str, value: str) -> bytes:
    """A part with a field."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return f"{head}{value}\r\n".encode()


def file_head(name: str = "file", filename: str = "a.jsonl") -> bytes:
    """What stands before the bytes of a file."""
    return (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="{name}"; filename="{filename}"\r\n\r\n'
    ).encode()


def file(content: bytes, name: str = "file", filename: str = "a.jsonl") -> bytes:
    """A part with a file."""
    return file_head(name, filename) + content + b"\r\n"


class Client:
    """One connection to a proxy, on which an upload is written as the test likes."""

    def __init__(self, proxy: Proxy, key: str, *, length: int | None, type: str = TYPE) -> None:
        self.sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        self.sock.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: {type}\r\n{framing}\r\n\r\n".encode()
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._more()
        return int(first.split()[1]), headers, json.loads(body)

    def _more(self) -> bytes:
        data = self.sock.recv(65536)
        assert data, "the connection ended too early"
        return data


def post(
    proxy: Proxy, key: str, body: bytes, *, type: str = TYPE
) -> tuple[int, dict[str, str], Any]:
    """One upload, sent at once."""
    with Client(proxy, key, length=len(body), type=type) as client:
        client.send(body)
        return client.answer()
