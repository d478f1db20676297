"""An HTTP client on a bare socket: sees each byte, and can go away at any moment."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from tests.kit.described import check_described


class Exchange:
    """One request on a connection of its own; a context manager."""

    def __init__(
        self,
        port: int,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10,
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        data = body if isinstance(body, bytes) else b"" if body is None else _dumps(body)
        head = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(data)), **(headers or {})}
        if key:
            head["Authorization"] = f"Bearer {key}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
        self._received = b""
        self._asked = (method, path)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_until(self, mark: bytes) -> bytes:
        """Everything received so far, once `mark` is among it."""
        while mark not in self._received:
            data = self.socket.recv(65536)
            if not data:
                raise AssertionError(
                    f"the connection ended before {mark!r}: …{self._received[-300:]!r}"
                )
            self._received += data
        return self._received

    def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        while data := self.socket.recv(65536):
            self._received += data
        return self._received

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        head = self.read_until(b"\r\n\r\n").split(b"\r\n\r\n", 1)[0].decode("latin-1")
        first, *lines = head.split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    def body(self) -> bytes:
        """The whole body, by its length or its chunks; must be complete. Errors are held to the
        description of the API, and so are the status and headers of every answer."""
        status, headers = self.head()
        data = self._body(headers)
        check_described(*self._asked, status, headers, data if status >= 400 else None)
        return data

    def _body(self, headers: Mapping[str, str]) -> bytes:
        start = self._received.index(b"\r\n\r\n") + 4
        if "content-length" in headers:
            while len(self._received) < start + int(headers["content-length"]):
                self._more()
            return self._received[start : start + int(headers["content-length"])]
        self.read_until(b"\r\n0\r\n\r\n")  # a header may end in 0, too
        return b"".join(self.chunks())

    def chunks(self) -> list[bytes]:
        """The chunks received so far, one for each write of the server."""
        rest = self._received.split(b"\r\n\r\n", 1)[1]
        found = []
        while b"\r\n" in rest:
            size, rest = rest.split(b"\r\n", 1)
            length = int(size, 16)
            if not length or len(rest) < length + 2:
                break
            found.append(rest[:length])
            rest = rest[length + 2 :]
        return found

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise AssertionError("the connection ended inside the body")
        self._received += data

    def close(self) -> float:
        """Go away; the time.monotonic() of it."""
        self.socket.close()
        return time.monotonic()


def chat(text: str = "Hello there", **fields: Any) -> dict[str, Any]:
    """A chat request; `[[sandbox: …]]` in the text chooses what the upstream does."""
    return {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": text}], **fields}


def events(body: bytes) -> list[Any]:
    """The payloads of an event stream, parsed; `[DONE]` as that string."""
    found: list[Any] = []
    for event in body.decode().split("\n\n"):
        for line in event.split("\n"):
            if line.startswith("data: "):
                payload = line[6:]
                found.append(payload if payload == "[DONE]" else json.loads(payload))
    return found


def text_of(chunks: list[Any]) -> str:
    """The answer's text, from parsed chunks."""
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in chunks
        if isinstance(chunk, dict)
        for choice in chunk.get("choices", ())
    )


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()
