"""A host that takes uploads of any size without holding them, as fast as a test wants."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from types import TracebackType

_END = b"0\r\n\r\n"
_READ = 256 * 1024


class FileHost:
    """Reads bodies in chunked coding, counts them, and answers with a file. A context manager.

    Attributes:
        received: bytes of bodies, with their framing.
        complete, cut: requests that ended with their last chunk, and without it.
        open: cleared, it reads nothing beyond the first megabyte of a body.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/compatible-mode/v1"
        self.received = self.complete = self.cut = 0
        self.open = threading.Event()
        self.open.set()
        self._socks: list[socket.socket] = []

    def __enter__(self) -> FileHost:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open.set()
        for sock in (self._listener, *self._socks):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := sock.recv(_READ)):
                    return
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                self._answer(sock, {"object": "list", "data": []})
                return
            count, tail = len(body), body[-len(_END) :]
            self.received += len(body)
            while tail != _END:
                if count > 1024 * 1024:
                    self.open.wait()
                more = sock.recv(_READ)
                if not more:
                    self.cut += 1
                    return
                count += len(more)
                self.received += len(more)
                tail = (tail + more)[-len(_END) :]
            self.complete += 1
            self._answer(
                sock,
                {
                    "id": f"file-batch-{self.complete}",
                    "object": "file",
                    "bytes": count,
                    "created_at": 1,
                    "filename": "a.jsonl",
                    "purpose": "batch",
                    "status": "processed",
                },
            )

    @staticmethod
    def _answer(sock: socket.socket, value: object) -> None:
        body = json.dumps(value).encode()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        sock.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        sock.close()
