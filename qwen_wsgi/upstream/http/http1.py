"""One HTTP/1.1 exchange on a pooled connection, up to the end of the response's head.

`requests` chooses the connection, sets it up and says what its failures mean; only the bytes of the
exchange are ours. http.client parses a head with the e-mail package and wraps the body in four
objects that the relay then reaches around: writing and reading it here saves 290 µs a request
(benchmarks), and the socket and what was read beyond the head are at hand without private names.
"""

from __future__ import annotations

import functools
import http.client
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProtocolError, ReadTimeoutError

from qwen_wsgi.greenlets import TimedReads, readable_now

#: A head longer than this is no head.
_MAX_HEAD_BYTES: Final = 64 * 1024

#: Header lines of a head, and interim responses (1xx) before it.
_MAX_HEADERS: Final = 256
_MAX_INTERIM: Final = 10

#: No content is longer (2**60 bytes), so a longer number is none.
_LENGTH_DIGITS: Final = 18

#: A larger body is not copied behind the head.
_JOINED_BYTES: Final = 64 * 1024

_RECV_BYTES: Final = 16 * 1024

#: While a server takes nothing of a streamed body, it is looked so often whether it has answered.
_LOOK_S: Final = 1.0

#: Linux's `struct tcp_info`: its size up to here, and where the bytes are that the other end has
#: acknowledged (since 4.1), that were sent, and that were sent again (since 4.19).
_TCP_INFO_BYTES: Final = 216
_BYTES_ACKED: Final = 120
_BYTES_SENT: Final = 200
_U64: Final = struct.Struct("=Q")
_TWO_U64: Final = struct.Struct("=QQ")


class RequestHeaders(dict[str, str]):
    """A request's headers, and a note of the connection that they went out on."""

    #: The connection had served a request before, so it may have been closed at the other end.
    #: On a new one the upstream has read the request, and perhaps done (and billed) the work.
    kept_connection = False
    #: It was closed before the request came there: the upstream read nothing of it.
    unread = False

    def copy(self) -> RequestHeaders:
        """Itself: urllib3 copies the headers of every request, and the note would be lost."""
        return self


class StreamedBody(Protocol):
    """A request's body that is made while it is sent, and can be sent once."""

    @property
    def content_type(self) -> str:
        """For the request's head."""

    def __iter__(self) -> Iterator[bytes]:
        """Its pieces, none of them empty. What it raises ends the request without its last chunk,
        so that no server takes it for complete."""


class Head(NamedTuple):
    """The head of a response; header names are in lower case, repeated ones joined by commas."""

    status: int
    reason: str
    headers: dict[str, str]
    keep_alive: bool


def parse_head(head: bytes) -> Head:
    """Read a status line and header lines (RFC 9112 §4, §5), without the empty line.

    Raises:
        ProtocolError: this is no HTTP/1 response.
    """
    text = head.decode("latin-1")
    first, *lines = text.split("\r\n")
    # RFC 9110 §5.5: such values are dangerous wherever they are passed on.
    if (
        len(lines) > _MAX_HEADERS
        or "\0" in text
        or not (text.count("\n") == text.count("\r") == len(lines))
    ):
        raise ProtocolError("the answer's head is broken, or has too many lines")
    version, _, rest = first.partition(" ")
    code, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(code) != 3 or not code.isdecimal():
        raise ProtocolError("the answer is no HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ProtocolError("a header line of the answer is broken")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    connection = headers.get("connection", "").lower()
    keep = "keep-alive" in connection if version == "HTTP/1.0" else "close" not in connection
    return Head(int(code), reason, headers, keep)


def _framing(head: Head) -> tuple[bool, int | None]:
    """How a body ends (RFC 9112 §6.3): whether it is in chunks; if not, the length that is said.

    An upstream that says it in a way that others could read otherwise gives no answer: the part of
    it that came before the connection ended would pass for the whole.

    Raises:
        ProtocolError: it is one of those.
    """
    if head.status in (204, 304):
        return False, 0
    coding = head.headers.get("transfer-encoding")
    if coding is not None and (coding := coding.lower()) not in ("", "identity"):
        if coding != "chunked":
            raise ProtocolError("the answer has a transfer coding that was not asked for")
        return True, None
    length = head.headers.get("content-length")
    if length is None:
        return False, None
    if not length.isdecimal():
        # The same length twice is allowed.
        first, *more = (each.strip() for each in length.split(","))
        if not first.isdecimal() or any(each != first for each in more):
            raise ProtocolError("the answer's length is no length")
        length = first
    if len(length) > _LENGTH_DIGITS:
        raise ProtocolError("the answer's length is no length")
    return False, int(length)


class PooledResponse:
    """A response whose head was read; what requests and `BodyReader` need of urllib3's.

    Attributes:
        reads: where the body comes from. Its owner stops them, before it lets go of the response.
        first: the bytes of the body that came along with the head.
        connect_s: what setting up the connection took, TLS included; 0.0 for one that was kept.
        chunked: it is in chunks; else it has `length` bytes, or ends with its connection (None).
    """

    def __init__(
        self,
        pool: Any,
        connection: Any,
        reads: TimedReads,
        head: Head,
        first: bytes,
        connect_s: float,
    ) -> None:
        self._pool = pool
        self.connect_s = connect_s
        self._connection = connection
        self.status = head.status
        self.reason = head.reason
        self.headers = head.headers
        self.reads = reads
        self.first = first
        # As nearly all streams say it: a call less for each.
        usual = head.status == 200 and head.headers.get("transfer-encoding") == "chunked"
        self.chunked, self.length = (True, None) if usual else _framing(head)
        self._keep = head.keep_alive and (self.chunked or self.length is not None)

    def release(self) -> None:
        """Give the connection to others; only after the whole body was read."""
        self._let_go(keep=self._keep)

    def close(self) -> None:
        """Close the connection."""
        self._let_go(keep=False)

    def _let_go(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if not keep:
                connection.close()
            connection.generation = self._pool.generation
            self._pool._put_conn(connection)


class _Connected:
    """urllib3 asks before each request whether a kept connection is still up; under gevent its own
    way of asking goes through the hub."""

    sock: Any
    #: The pool's, when the connection was last put into it.
    generation = 0

    @property
    def is_connected(self) -> bool:
        # Nothing is outstanding on it, so what can be read is its end, or rubbish.
        return self.sock is not None and not readable_now(self.sock)


class _HTTPConnection(_Connected, HTTPConnection):
    pass


class _HTTPSConnection(_Connected, HTTPSConnection):
    pass


class _Exchanging:
    """A pool whose requests are written and answers read here. Behind an HTTP proxy, which wants
    other request lines and headers, urllib3 does it all."""

    #: Counts up when a kept connection proves to be dead. Those that were idle then most likely
    #: are, too: no request is sent on one of an earlier generation.
    generation = 0

    def urlopen(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        retries: Any = None,
        timeout: Any = None,
        **more: Any,
    ) -> Any:
        pool: Any = self
        if pool.proxy is not None:
            return super().urlopen(  # type: ignore[misc]  # of urllib3's pool
                method, url, body=body, headers=headers, retries=retries, timeout=timeout, **more
            )
        connection: Any = None
        reads: TimedReads | None = None
        kept, size = False, 0
        try:
            connection = pool._get_conn()
            kept = connection.sock is not None
            streamed = body is not None and not isinstance(body, bytes)
            # A streamed body cannot be sent again if a kept connection proves to be dead.
            if kept and (streamed or connection.generation != self.generation):
                connection.close()
                kept = False
            if isinstance(headers, RequestHeaders):
                headers.kept_connection = kept
            connect_s = 0.0 if kept else _connect(connection, timeout.connect_timeout)
            connection.sock.settimeout(timeout.read_timeout)  # for sending
            early = b""
            if streamed:
                _send(connection.sock, method, url, self._host, headers, None)
                early = _send_pieces(connection.sock, body, timeout.read_timeout)
            else:
                size = _send(connection.sock, method, url, self._host, headers, body)
            reads = TimedReads(connection.sock, timeout.read_timeout)
            head, first = _receive_head(reads, early)
            if early:
                head = head._replace(keep_alive=False)  # the rest of the body is missing
            return PooledResponse(self, connection, reads, head, first, connect_s)
        except BaseException as error:
            if reads is not None:
                reads.stop()
            if kept and is_stale(error):
                self.generation += 1
                if isinstance(headers, RequestHeaders):
                    headers.unread = _is_unread(connection.sock, size, error)
            if connection is not None:
                connection.close()
                pool._put_conn(connection)
            failure = _as_urllib3(error, pool, url)
            if failure is None:
                raise
            # Raises what requests knows: a MaxRetryError around it, or the failure itself.
            retries.increment(method, url, error=failure, _pool=self)
            raise failure from error

    @functools.cached_property
    def _host(self) -> str:
        pool: Any = self
        host = f"[{pool.host}]" if ":" in pool.host else pool.host
        default = {"http": 80, "https": 443}[pool.scheme]
        return host if pool.port in (None, default) else f"{host}:{pool.port}"


# For mypy, twice: urlopen answers with the part of urllib3's response that is used here.
class HTTPPool(_Exchanging, urllib3.HTTPConnectionPool):  # type: ignore[misc]  # see above
    """Connections to one http origin."""

    ConnectionCls = _HTTPConnection


class HTTPSPool(_Exchanging, urllib3.HTTPSConnectionPool):  # type: ignore[misc]  # as above
    """Connections to one https origin."""

    ConnectionCls = _HTTPSConnection


def _connect(connection: Any, timeout_s: float) -> float:
    """Set the connection up; the seconds that it took."""
    started_s = time.monotonic()
    connection.timeout = timeout_s
    try:
        connection.connect()
    except TimeoutError as error:  # in the TLS handshake; before it urllib3 says so itself
        raise ConnectTimeoutError(connection, "the TLS handshake took too long") from error
    return time.monotonic() - started_s


def _send(
    sock: Any, method: str, url: str, host: str, headers: Mapping[str, str], body: bytes | None
) -> int:
    """Write a request; its size in bytes."""
    lines = [f"{method} {url} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    # A line end in a value would be a header of somebody else's making.
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1:
        raise ProtocolError("a header of the request holds a line end")
    head = (text + "\r\n\r\n").encode("latin-1")
    try:
        if body is None or len(body) <= _JOINED_BYTES:
            sock.sendall(head + (body or b""))
        elif isinstance(sock, ssl.SSLSocket):
            sock.sendall(head)
            sock.sendall(body)
        else:
            # In one call, which wakes the other end once; it takes less than all if it is slow.
            sent = sock.sendmsg((head, body))
            if sent < len(head):
                sock.sendall(head[sent:])
            if sent < len(head) + len(body):
                sock.sendall(memoryview(body)[max(sent - len(head), 0) :])
    except BrokenPipeError:
        pass  # it may have answered before it closed, e.g. that the body is too large
    return len(head) + len(body or b"")


def _send_pieces(sock: Any, pieces: StreamedBody, silence_s: float) -> bytes:
    """Write a body in chunked coding (RFC 9112 §7.1), up to its end or until the server answers.

    Returns:
        The first bytes of an answer that came before the body's end; b"" if there was none.

    Raises:
        TimeoutError: the server took nothing for so many seconds.
        OSError: it closed the connection without an answer.
    """
    for piece in pieces:
        if early := _send_all(sock, b"%x\r\n%b\r\n" % (len(piece), piece), silence_s):
            return early
    _send_all(sock, b"0\r\n\r\n", silence_s)
    return b""


def _send_all(sock: Any, data: bytes, silence_s: float) -> bytes:
    """Write all of it; raises and returns as `_send_pieces`."""
    left, end_s = memoryview(data), time.monotonic() + silence_s
    sock.settimeout(min(_LOOK_S, silence_s))
    while left:
        if early := _answer_so_far(sock):
            return early
        try:
            left = left[sock.send(left) :]
            end_s = time.monotonic() + silence_s
        except TimeoutError:
            if time.monotonic() >= end_s:
                raise
        except (BrokenPipeError, ConnectionResetError):
            if early := _answer_so_far(sock):
                return early
            raise
    return b""


def _answer_so_far(sock: Any) -> bytes:
    """What can be read at once; b"" if nothing was sent, or only something of TLS.

    Raises:
        RemoteDisconnected: the other end has closed the connection.
    """
    if not readable_now(sock):
        return b""
    before_s = sock.gettimeout()
    sock.settimeout(0)
    try:
        data: bytes = sock.recv(_RECV_BYTES)
    except (BlockingIOError, ssl.SSLWantReadError):
        return b""
    finally:
        sock.settimeout(before_s)
    if not data:
        raise http.client.RemoteDisconnected("the connection ended without an answer")
    return data


def is_stale(error: BaseException) -> bool:
    """Whether a connection ended without one byte of a response."""
    return isinstance(error, ConnectionResetError | BrokenPipeError)


def _is_unread(sock: Any, size: int, error: BaseException) -> bool:
    """Whether the other end had closed the connection before the request came there.

    Then its end came in good order, and acknowledges no byte of the request. Who has read some of
    it and closes acknowledges that by the same packet; and a reset proves nothing, because an
    acknowledgement may be late. The bytes of TLS are more than `size`, but none of their records
    can be read in part.
    """
    if not isinstance(error, http.client.RemoteDisconnected):
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        (acknowledged,) = _U64.unpack_from(info, _BYTES_ACKED)
        sent, again = _TWO_U64.unpack_from(info, _BYTES_SENT)
    except (OSError, struct.error):
        return False  # not by Linux, or by an old one
    on_the_way: int = sent - again - (acknowledged - 1)  # the connection's first packet counts one
    return 0 < size <= on_the_way


def _receive_head(reads: TimedReads, got: bytes | bytearray = b"") -> tuple[Head, bytes]:
    """The head of the final response, and what came behind it.

    The time for it is that of the first read, for all interim responses together.

    Args:
        got: what was read of it already.
    """
    end_s = time.monotonic() + reads.timeout_s
    interim = searched = 0
    while True:
        end = got.find(b"\r\n\r\n", searched)
        if end >= 0:
            head = parse_head(bytes(got[:end]))
            got, searched = bytes(got[end + 4 :]), 0
            if head.status >= 200:
                return head, got
            interim += 1
            if interim > _MAX_INTERIM:
                raise ProtocolError("the answer does not come, but interim ones without an end")
            continue
        if len(got) > _MAX_HEAD_BYTES:
            raise ProtocolError("the answer's head does not end")
        if got or interim:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            reads.limit(left_s)
        piece = reads.recv(_RECV_BYTES)
        if not piece:
            raise http.client.RemoteDisconnected("the connection ended without an answer")
        if not got:
            got = piece
            continue
        searched = max(len(got) - 3, 0)
        got = bytearray(got) if isinstance(got, bytes) else got
        got += piece


def _as_urllib3(error: BaseException, pool: Any, url: str) -> HTTPError | None:
    """A failure as urllib3 would say it, so that requests can tell what it means; None for what is
    no failure of the exchange, such as the client's going away."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return urllib3.exceptions.SSLError(error)
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(pool, url, "the answer's head did not come in time")
    if isinstance(error, OSError | http.client.HTTPException):
        return ProtocolError("Connection aborted.", error)
    return None
