"""A client of Responses over a WebSocket, by the `websockets` package."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect

#: What Codex sends.
BETA = {"OpenAI-Beta": "responses_websockets=2026-02-06"}
MODEL = "qwen3.7-plus"

#: The events after which a response, or its refusal, is complete.
LAST = ("response.completed", "response.failed", "response.incomplete", "error")

#: A head by which a raw socket begins a WebSocket; the key goes in between.
HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def frame(event: Any) -> bytes:
    """An event as a client's frame, for a raw socket; its mask changes nothing."""
    payload = json.dumps(event).encode()
    if len(payload) > 125:
        size = bytes([0x80 | 126]) + struct.pack("!H", len(payload))
    else:
        size = bytes([0x80 | len(payload)])
    return b"\x81" + size + bytes(4) + payload


class Socket:
    """One connection; a context manager."""

    def __init__(
        self,
        port: int,
        key: str = "",
        *,
        path: str = "/v1/responses",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 15,
        **options: Any,
    ) -> None:
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        self.timeout_s = timeout_s
        self.connection: ClientConnection = connect(
            f"ws://127.0.0.1:{port}{path}",
            additional_headers={**BETA, **auth, **(headers or {})},
            open_timeout=timeout_s,
            close_timeout=5,
            max_size=None,
            **options,
        )

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @property
    def request_id(self) -> str:
        assert self.connection.response is not None
        return self.connection.response.headers["x-request-id"]

    @property
    def raw(self) -> socket.socket:
        return self.connection.socket

    def create(self, text: Any = None, **members: Any) -> None:
        """Request a response; without a text, without input."""
        given = {} if text is None else {"input": text}
        self.send({"type": "response.create", "model": MODEL, **given, **members})

    def send(self, event: Any) -> None:
        self.connection.send(event if isinstance(event, str | bytes) else json.dumps(event))

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next event."""
        return json.loads(self.connection.recv(timeout_s or self.timeout_s))

    def events(self) -> list[Any]:
        """The events up to the last one of a response."""
        found = [self.receive()]
        while found[-1]["type"] not in LAST:
            found.append(self.receive())
        return found

    def until(self, type: str) -> Any:
        """The next event of a type."""
        while (event := self.receive())["type"] != type:
            pass
        return event

    def last(self) -> Any:
        """The last event of the next response."""
        return self.events()[-1]

    def ask(self, text: Any = None, **members: Any) -> Any:
        """Request a response; the object, which is complete."""
        self.create(text, **members)
        last = self.last()
        assert last["type"] == "response.completed", last
        return last["response"]

    def closed(self, timeout_s: float | None = None) -> Close | None:
        """Wait for the end; the close frame that the server sent."""
        try:
            while True:
                self.connection.recv(timeout_s or self.timeout_s)
        except ConnectionClosed as end:
            return end.rcvd

    def vanish(self) -> None:
        """Close the socket without a word."""
        self.raw.shutdown(socket.SHUT_RDWR)


def text_of(response: Mapping[str, Any]) -> str:
    """The text of a response."""
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )
