"""One connection for one request: knows whether bytes may have been sent, and ends slow requests.

Only this module depends on how `requests` makes its connections.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from qwen_wsgi.credentials.oauth.errors import NotSent

#: No answer of these endpoints is longer.
MAX_BODY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Moment:
    """A point in time, by both clocks."""

    wall_s: float
    boottime_s: float


class Wire:
    """Knows whether the request may have been sent, and ends one that takes too long.

    Otherwise a server that sends a byte now and then would keep the login locked for ever: the
    timeouts of sockets restart with each byte.
    """

    def __init__(self, before_send: Callable[[], None], moment: Callable[[], Moment]) -> None:
        self._before_send = before_send
        self._moment = moment
        self._lock = threading.Lock()
        self._sock: Any = None
        #: The connection reports what it sends. If not (a `requests` that makes connections in
        #: another way), `sent` being None proves nothing.
        self.watched = False
        self.sent: Moment | None = None
        self.ended = False

    def sending(self, sock: Any) -> None:
        """Called before bytes of the request are written.

        Raises:
            NotSent: it took too long; nothing was written.
        """
        if self.sent is not None:
            return
        self._before_send()
        with self._lock:
            if self.ended:
                raise NotSent("it took too long to connect")
            self._sock = sock
            self.sent = self._moment()

    def end(self) -> None:
        """Shut the connection down, so that the thread that waits for the answer gets an error."""
        with self._lock:
            self.ended = True
            sock = self._sock
        # The plain socket's method: a TLS socket's drops the TLS state, and the reader would go
        # on reading without it. TypeError: TLS inside TLS (an https proxy) is not a socket.
        with suppress(OSError, TypeError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watched(HTTPConnection):
    """Mixed into the class of the connection that is used, with `wire` as a class attribute."""

    wire: Wire
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()
        finally:
            self._connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        # While it connects, it sends CONNECT to a proxy.
        if not self._connecting:
            self.wire.sending(self.sock)
        super().send(data)


class Adapter(HTTPAdapter):
    """One connection for one request."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._wire = wire

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        self._wire.watched = True
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        # Derived from the pool's own class, which handles TLS or SOCKS.
        pool.ConnectionCls = type("Watched", (_Watched, pool.ConnectionCls), {"wire": self._wire})
        return pool


def read(raw: Any) -> bytes:
    """Read the body, up to MAX_BODY_BYTES."""
    body = b""
    # In pieces: only the read at the end of the connection reports that it came too early.
    while len(body) < MAX_BODY_BYTES:
        part = raw.read(min(65_536, MAX_BODY_BYTES - len(body)), decode_content=True)
        if not part:
            break
        body += part
    return body


def reason(error: BaseException) -> str:
    """Describe a failure of the transport; never by its own text, which may quote an address."""
    chain = [error]
    while True:
        last: Any = chain[-1]
        inner = getattr(last, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((a for a in last.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            inner = last.__cause__
        if inner is None or inner in chain:
            break
        chain.append(inner)
    for kind, words in _REASONS:
        if any(isinstance(each, kind) for each in chain):
            return words
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    for kind, words in _REASONS_WITHOUT_WORDS:
        if any(isinstance(each, kind) for each in chain):
            return words
    return type(chain[-1]).__name__


_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (urllib3.exceptions.NameResolutionError, "its name does not resolve"),
    (urllib3.exceptions.ProxyError, "the HTTP proxy on the way failed"),
)
#: Where the system has no text for it.
_REASONS_WITHOUT_WORDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (urllib3.exceptions.SSLError, "the TLS connection failed"),
    (urllib3.exceptions.ConnectTimeoutError, "no connection in time"),
    (urllib3.exceptions.ReadTimeoutError, "no answer in time"),
    (TimeoutError, "no answer in time"),
    (ConnectionError, "the connection was closed"),
    (urllib3.exceptions.IncompleteRead, "the connection was closed"),
    (http.client.HTTPException, "the answer is not HTTP"),
)
