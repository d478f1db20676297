"""A server that says exactly the bytes it is told, and cuts where it is told."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

_WAIT_S = 10.0


class Gone(Exception):
    """The client closed the connection."""


class Peer:
    """One connection, as the script of an answer sees it."""

    def __init__(self, sock: socket.socket, connection: int) -> None:
        self._sock = sock
        #: The number of the connection, from 1.
        self.connection = connection
        #: Head and body of the request that is answered.
        self.request = b""
        self.closed = False

    def send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            raise Gone from None

    def close(self) -> None:
        """End in good order (FIN)."""
        self.closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def reset(self) -> None:
        """End with an RST."""
        self.closed = True
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def read_request(self) -> bytes:
        """Head and body of the next request, `b""` at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := self._receive()):
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(body) < length:
            if not (more := self._receive()):
                return b""
            body += more
        return head + b"\r\n\r\n" + body

    def whole_request(self) -> bytes:
        """The request that is answered, up to its last chunk or to the end of the connection."""
        data = self.request
        while not data.endswith(b"\r\n0\r\n\r\n") and (more := self._receive()):
            data += more
        return data

    def wait_until_closed(self) -> bool:
        """Whether the client closes the connection soon."""
        return self._receive() == b""

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(65_536)
        except TimeoutError:
            raise
        except OSError:
            return b""


Answer = bytes | Callable[[Peer], None]


class RawServer:
    """Answers the n-th request with the n-th answer, the last one again and again.

    An answer is bytes to send, or a function that drives the connection. Used as a context manager;
    leaving it raises what a script raised.
    """

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._peers: list[Peer] = []
        self._stopping = False
        self.requests: list[bytes] = []
        self.connections = 0
        self.failures: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        with self._lock:
            peers, threads = list(self._peers), list(self._threads)
        for peer in peers:
            if not peer.closed:
                peer.close()
        for thread in threads:
            thread.join(_WAIT_S)
        self._listener.close()
        if self.failures and error is None:
            raise self.failures[0]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._stopping:
                sock.close()
                return
            sock.settimeout(_WAIT_S)
            with self._lock:
                self.connections += 1
                peer = Peer(sock, self.connections)
                self._peers.append(peer)
            self._start(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        try:
            while not peer.closed and (request := peer.read_request()):
                with self._lock:
                    answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
                    self.requests.append(request)
                peer.request = request
                if isinstance(answer, bytes):
                    peer.send(answer)
                else:
                    answer(peer)
        except (Gone, TimeoutError):
            pass
        except BaseException as error:  # shown by the test that used the server
            if not self._stopping:
                self.failures.append(error)
        finally:
            if not peer.closed:
                peer.close()


def head(status: str = "200 OK", **headers: str) -> bytes:
    """The head of a response; `_` in names stands for `-`."""
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """Pieces in chunked coding."""
    out = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return out + (b"0\r\n\r\n" if end else b"")


def stream(*events: bytes, end: bool = True) -> bytes:
    """A whole answer of server-sent events in chunked coding."""
    return head(content_type="text/event-stream", transfer_encoding="chunked") + chunked(
        *events, end=end
    )


def whole(
    body: bytes, status: str = "200 OK", content_type: str = "application/json", **headers: str
) -> bytes:
    """A whole answer with its length."""
    return head(status, content_type=content_type, content_length=str(len(body)), **headers) + body


#: The shortest good answer to a chat request.
COMPLETION: Final[dict[str, Any]] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    ],
}
