"""An upstream that answers with a test's own bytes."""

from __future__ import annotations

import re
import socket
import threading

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class CannedUpstream:
    """An upstream that sends the same bytes to every POST, in one piece; and knows no models."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    request = _read_request(connection)
                    if not request:
                        return
                    if request.startswith(b"POST"):
                        connection.sendall(self.answer)
                    else:
                        connection.sendall(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")

    def stop(self) -> None:
        """End its thread by a connection that says nothing."""
        port = int(self.base_url.split(":")[2].split("/")[0])
        socket.create_connection(("127.0.0.1", port)).close()
        self._thread.join(5)


def _read_request(connection: socket.socket) -> bytes:
    """A whole request: closing with bytes unread would reset the connection, answer and all."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return head
