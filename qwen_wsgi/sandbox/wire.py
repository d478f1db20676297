"""HTTP/1.1 on a raw socket: reads requests, and notices when the peer disconnects.

Modules are imported whole (`socket.socket`, not `from socket import socket`), so that a later
gevent patch still takes effect.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
# Of an upload of a file, with its form.
MAX_UPLOAD_BYTES: Final = 513 * 1024 * 1024
# Time for the rest of a request after its first byte: long enough for a debugger, and limited, so
# that half a request does not block a thread for ever.
REQUEST_TIMEOUT_S: Final = 30.0
UPLOAD_TIMEOUT_S: Final = 900.0
SEND_TIMEOUT_S: Final = 120.0
# The longest wait of one recv(): some platforms refuse huge timeouts.
_LONGEST_WAIT_S: Final = 3600.0
_RECV_BYTES: Final = 65536


class PeerGone(Exception):
    """The client closed or reset the connection; noticed at the monotonic time `at_s`."""

    def __init__(self) -> None:
        super().__init__("the client has gone")
        self.at_s = time.monotonic()


class Malformed(Exception):
    """The bytes received are not a valid HTTP request; `status` is the status to answer with."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; `body` is exactly as received, without the transfer coding."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> str:
        return urlsplit(self.target).query

    def header(self, name: str) -> str | None:
        """Return the values of a header joined by a comma, or None if it was not sent."""
        values = [value for key, value in self.headers if key.lower() == name]
        return ", ".join(values) if values else None

    @property
    def wants_close(self) -> bool:
        connection = (self.header("connection") or "").lower()
        return "close" in connection or (
            self.version == "HTTP/1.0" and "keep-alive" not in connection
        )


class Connection:
    """One accepted socket. Owned by one thread, except for `abort`, which any thread may call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._most_bytes = MAX_BODY_BYTES
        self._pace_s = 0.0
        with suppress(OSError):  # some systems refuse this on a connection that is already reset
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read_head(self, idle_s: float) -> Request | None:
        """Return the next request without its body, or None if the peer closed or was silent for
        `idle_s` seconds.

        Raises:
            Malformed: it is not a valid request.
        """
        if not self._buffer and not self._fill(time.monotonic() + idle_s):
            return None
        head = self._read_head(time.monotonic() + REQUEST_TIMEOUT_S)
        return None if head is None else _parse_head(head)

    def read_body(self, request: Request, *, upload: bool, pace_s: float = 0.0) -> Request | None:
        """Return the request with its body, or None if the peer closed or was too slow.

        Args:
            upload: it may be large, and take long.
            pace_s: is waited before each read.

        Raises:
            Malformed: it is not a valid request, or too large.
        """
        self._most_bytes = MAX_UPLOAD_BYTES if upload else MAX_BODY_BYTES
        self._pace_s = pace_s
        if (request.header("expect") or "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        limit_s = UPLOAD_TIMEOUT_S if upload else REQUEST_TIMEOUT_S
        body = self._read_body(request, time.monotonic() + limit_s)
        self._pace_s = 0.0
        if body is None:
            return None
        return Request(request.method, request.target, request.version, request.headers, body)

    def wait(self, seconds: float) -> None:
        """Sleep, but wake at once when the peer closes.

        Bytes that arrive meanwhile (a pipelined request) are kept for `read_request`.

        Raises:
            PeerGone: the peer closed or reset the connection.
        """
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._receive(min(left_s, _LONGEST_WAIT_S))

    def check_peer(self) -> None:
        """Raise PeerGone if the peer has already closed; never blocks."""
        self._receive(0.0)

    def send(self, data: bytes) -> None:
        """Write all of `data`.

        Raises:
            PeerGone: the peer has closed the connection.
        """
        try:
            self._sock.settimeout(SEND_TIMEOUT_S)
            self._sock.sendall(data)
        except OSError:
            raise PeerGone from None

    def reset(self) -> None:
        """Close with a TCP reset instead of a FIN."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._sock.close()

    def abort(self) -> None:
        """Wake the owner thread: its current or next wait, read or send raises PeerGone."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _receive(self, timeout_s: float) -> None:
        """Receive into the buffer, waiting at most `timeout_s` seconds."""
        try:
            self._sock.settimeout(timeout_s)
            data = self._sock.recv(_RECV_BYTES)
        except (TimeoutError, BlockingIOError):
            return
        except OSError:
            raise PeerGone from None
        if not data or len(self._buffer) > self._most_bytes:
            raise PeerGone
        self._buffer += data

    def _fill(self, deadline_s: float) -> bool:
        """Receive something before the deadline; False when the peer closed or stayed silent."""
        size = len(self._buffer)
        while len(self._buffer) == size:
            if self._pace_s:
                time.sleep(self._pace_s)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            try:
                self._receive(min(left_s, _LONGEST_WAIT_S))
            except PeerGone:
                return False
        return True

    def _read_head(self, deadline_s: float) -> bytes | None:
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", max(0, searched - 3))) < 0:
            searched = len(self._buffer)
            if searched > MAX_HEAD_BYTES:
                raise Malformed(431, "request header fields too large")
            if not self._fill(deadline_s):
                return None
        if end > MAX_HEAD_BYTES:
            raise Malformed(431, "request header fields too large")
        return self._take(end + 4)

    def _read_body(self, request: Request, deadline_s: float) -> bytes | None:
        if "chunked" in (request.header("transfer-encoding") or "").lower():
            return self._read_chunked(deadline_s)
        text = request.header("content-length") or "0"
        if not text.isascii() or not text.isdigit():
            raise Malformed(400, "bad Content-Length")
        if int(text) > self._most_bytes:
            raise Malformed(413, "request body too large")
        return self._read_exactly(int(text), deadline_s)

    def _read_chunked(self, deadline_s: float) -> bytes | None:
        body = bytearray()
        while True:
            line = self._read_line(deadline_s)
            if line is None:
                return None
            try:
                size = int(line.split(b";")[0].strip(), 16)
            except ValueError:
                raise Malformed(400, "bad chunk size") from None
            if size < 0 or len(body) + size > self._most_bytes:
                raise Malformed(413, "request body too large")
            if size == 0:
                break
            data = self._read_exactly(size + 2, deadline_s)
            if data is None:
                return None
            body += data[:-2]
        while trailer := self._read_line(deadline_s):
            del trailer
        return bytes(body)

    def _read_line(self, deadline_s: float) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Malformed(400, "line too long")
            if not self._fill(deadline_s):
                return None
        return self._take(end + 2)[:-2]

    def _read_exactly(self, size: int, deadline_s: float) -> bytes | None:
        while len(self._buffer) < size:
            if not self._fill(deadline_s):
                return None
        return self._take(size)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


def _parse_head(head: bytes) -> Request:
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Malformed(400, "bad request line")
    headers = []
    for line in lines[1:]:
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Malformed(400, "bad header line")
        headers.append((name, value.strip()))
    try:
        urlsplit(parts[1])
    except ValueError:
        raise Malformed(400, "bad request target") from None
    return Request(parts[0], parts[1], parts[2], tuple(headers))
