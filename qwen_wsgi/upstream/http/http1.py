"""One HTTP/1.1 exchange on a pooled connection, up to the end of the response's head.

urllib3 makes the connections, with all that TLS needs; which of them is kept and used again, and
the bytes of the exchange, are ours (docs/decisions/091). http.client parses a head with the e-mail
package and wraps the body in four objects that the relay then reaches around; here the socket and
what was read beyond the head are at hand without private names.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProtocolError, ReadTimeoutError

from qwen_wsgi.greenlets import KeptReads, TimedReads, look_at, readable_now

#: A head longer than this is no head.
_MAX_HEAD_BYTES: Final = 64 * 1024

#: Header lines of a head, and interim responses (1xx) before it.
_MAX_HEADERS: Final = 256
_MAX_INTERIM: Final = 10

#: No content is longer (2**60 bytes), so a longer number is none.
_LENGTH_DIGITS: Final = 18

#: A larger body is not copied behind the head.
_JOINED_BYTES: Final = 64 * 1024

#: Read with a head: a burst, or a whole answer, may come along with it. No memory is taken before
#: something is there.
_RECV_BYTES: Final = 64 * 1024

#: A longer name of a header line is not remembered.
_KNOWN_NAME_CHARS: Final = 64

#: While a server takes nothing of a streamed body, it is looked so often whether it has answered.
_LOOK_S: Final = 1.0

#: Linux's `struct tcp_info`: its size up to here, and where the bytes are that the other end has
#: acknowledged (since 4.1), that were sent, and that were sent again (since 4.19).
_TCP_INFO_BYTES: Final = 216
_BYTES_ACKED: Final = 120
_BYTES_SENT: Final = 200
_U64: Final = struct.Struct("=Q")
_TWO_U64: Final = struct.Struct("=QQ")


class NotAnswered(Exception):
    """An exchange ended without the head of an answer.

    Attributes:
        failure: as urllib3 says it.
        kept: the connection had served a request before, so it may have been closed at the other
            end. On a new one the upstream has read the request, and perhaps done (and billed) the
            work.
        unread: it was closed before the request came there: the upstream read nothing of it.
    """

    def __init__(self, failure: HTTPError, *, kept: bool, unread: bool) -> None:
        super().__init__(failure)
        self.failure = failure
        self.kept = kept
        self.unread = unread


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


#: Names of header lines that were judged, and how they are looked up: upstreams send the same ones
#: with each answer.
_KNOWN_NAMES: Final[dict[str, str]] = {}
_MOST_KNOWN: Final = 512


def _name_of(spelt: str) -> str:
    """The name of a header line in lower case; "" for what is no name."""
    if spelt != spelt.strip():
        return ""
    name = spelt.lower()
    if len(_KNOWN_NAMES) < _MOST_KNOWN and len(spelt) < _KNOWN_NAME_CHARS:
        _KNOWN_NAMES[spelt] = name
    return name


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
        spelt, colon, value = line.partition(":")
        name = _KNOWN_NAMES.get(spelt) or _name_of(spelt)
        if not colon or not name:
            raise ProtocolError("a header line of the answer is broken")
        value = value.strip(" \t")
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
    """A response whose head was read, by the names that those of requests have.

    Attributes:
        headers: their names are in lower case.
        reads: where the body comes from. Its owner stops them, before it lets go of the response.
        first: the bytes of the body that came along with the head.
        connect_s: what setting up the connection took, TLS included; 0.0 for one that was kept.
        chunked: it is in chunks; else it has `length` bytes, or ends with its connection (None).
    """

    __slots__ = (
        "_connection",
        "_keep",
        "_pool",
        "chunked",
        "connect_s",
        "first",
        "headers",
        "length",
        "reads",
        "reason",
        "status_code",
    )

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
        self.status_code, self.reason, self.headers, keep = head
        self.reads = reads
        self.first = first
        coding, said = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        # As nearly all say it: a call less for each.
        if coding == "chunked" and self.status_code == 200:
            chunked, length = True, None
        elif (
            coding is None
            and self.status_code == 200
            and said is not None
            and said.isdecimal()
            and len(said) <= _LENGTH_DIGITS
        ):
            chunked, length = False, int(said)
        else:
            chunked, length = _framing(head)
        self.chunked, self.length = chunked, length
        self._keep = keep and (chunked or length is not None)

    @property
    def raw(self) -> PooledResponse:
        """What `BodyReader` reads."""
        return self

    def whole(self, most: int) -> bytes | None:
        """The body, if all of it came along with the head, nothing else did, and it is not coded;
        its connection is given back then. None: it is to be read.

        Args:
            most: bytes; a longer one is to be read as well, and refused.
        """
        size = self.length
        if size is None or size != len(self.first) or size > most:
            return None
        if self._connection is None or "content-encoding" in self.headers:
            return None
        self.reads.stop()
        self.release()
        return self.first

    def release(self) -> None:
        """Give the connection to others; only after the whole body was read."""
        self._let_go(keep=self._keep)

    def close(self) -> None:
        """Close the connection."""
        self._let_go(keep=False)

    def _let_go(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if keep:
                self._pool.keep(connection)
            else:
                connection.close()


class _Kept:
    """A connection with what is made once for all of its exchanges."""

    sock: Any
    timeout: Any
    #: The pool's, when the connection was last put into it.
    generation = 0
    #: Whether something can be read: then it is not to be used, because nothing is outstanding on
    #: it, so that it is its end, or rubbish. urllib3's own way of asking goes through the hub.
    look: Callable[[], object]
    reads: KeptReads | None = None

    def open(self, timeout_s: float) -> float:
        """Set it up; the seconds that it took."""
        connection: Any = self
        started_s = time.monotonic()
        connection.timeout = timeout_s
        try:
            connection.connect()
        except TimeoutError as error:  # in the TLS handshake; before it urllib3 says so itself
            raise ConnectTimeoutError(connection, "the TLS handshake took too long") from error
        self.look = look_at(self.sock)
        self.reads = KeptReads(self.sock, timeout_s)
        return time.monotonic() - started_s

    def close(self) -> None:
        """Close it; it may be opened again."""
        reads, self.reads = self.reads, None
        try:
            if reads is not None:
                reads.close()
        finally:
            super().close()  # type: ignore[misc]  # of urllib3's connection


class _HTTPConnection(_Kept, HTTPConnection):
    pass


class _HTTPSConnection(_Kept, HTTPSConnection):
    pass


class Pool:
    """The connections to one origin. Their settings are those of the urllib3 pool that it is, too.

    Not locked: greenlets switch at I/O only, and a list's `pop` and `append` are one step each.
    """

    #: Counts up when a kept connection proves to be dead. Those that were idle then most likely
    #: are, too: no request is sent on one of an earlier generation.
    generation = 0

    def __init__(self, *args: Any, maxsize: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, maxsize=1, **kwargs)  # type: ignore[call-arg]  # of urllib3's pool
        self._most_idle = maxsize
        self._idle: list[Any] = []
        # As urllib3 does for its own: where nobody has closed them.
        weakref.finalize(self, _close_all, self._idle).atexit = False
        pool: Any = self
        host = f"[{pool.host}]" if ":" in pool.host else pool.host
        default = {"http": 80, "https": 443}[pool.scheme]
        #: What the header Host says.
        self.named = host if pool.port in (None, default) else f"{host}:{pool.port}"

    def keep(self, connection: Any) -> None:
        """Let others use a connection on which nothing is outstanding; above the pool's size it is
        closed."""
        if len(self._idle) < self._most_idle:
            connection.generation = self.generation
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._most_idle = 0
        _close_all(self._idle)
        super().close()  # type: ignore[misc]  # of urllib3's pool

    def exchange(
        self, head: bytes, body: bytes | StreamedBody | None, connect_s: float, read_s: float
    ) -> PooledResponse:
        """Send a request, and read the head of its answer.

        Args:
            head: to its empty line.
            connect_s: how long a new connection may take to set up.
            read_s: how long the head may take; also each piece of the body, see `BodyReader`.

        Raises:
            NotAnswered: there is none; the connection is closed.
        """
        connection: Any = None
        kept, size, took_s = False, 0, 0.0
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._new_conn()  # type: ignore[attr-defined]  # of urllib3's pool
            kept = connection.sock is not None
            # A streamed body cannot be sent again if a kept connection proves to be dead.
            if kept and (
                not isinstance(body, bytes | None)
                or connection.generation != self.generation
                or connection.look()
            ):
                connection.close()
                kept = False
            if not kept:
                took_s = connection.open(connect_s)
            sock, reads = connection.sock, connection.reads
            if sock.timeout != read_s:
                sock.settimeout(read_s)  # for sending
            early = b""
            if isinstance(body, bytes | None):
                size = _send(sock, head, body)
            else:
                _send(sock, head, None)
                early = _send_pieces(sock, body, read_s)
            reads.begin(read_s)
            answer, first = _receive_head(reads, early)
            if early:
                answer = answer._replace(keep_alive=False)  # the rest of the body is missing
            return PooledResponse(self, connection, reads, answer, first, took_s)
        except BaseException as error:
            unread = False
            if kept and is_stale(error):
                self.generation += 1
                unread = _is_unread(connection.sock, size, error)
            if connection is not None:
                connection.close()
            failure = _as_urllib3(error, self)
            if failure is None:
                raise
            if failure is not error:
                failure.__cause__ = error
            raise NotAnswered(failure, kept=kept, unread=unread) from failure


# For mypy, twice: urllib3's pools have a `close` and an `__init__` of other arguments.
class HTTPPool(Pool, urllib3.HTTPConnectionPool):
    """Connections to one http origin."""

    ConnectionCls = _HTTPConnection


class HTTPSPool(Pool, urllib3.HTTPSConnectionPool):
    """Connections to one https origin."""

    ConnectionCls = _HTTPSConnection


def _close_all(connections: list[Any]) -> None:
    while connections:
        connections.pop().close()


def request_head(lines: list[str]) -> bytes:
    """The head of a request, of its lines.

    Raises:
        ProtocolError: one holds a line end, which would be a header of somebody else's making.
    """
    text = "\r\n".join(lines)
    if not text.count("\n") == text.count("\r") == len(lines) - 1:
        raise ProtocolError("a header of the request holds a line end")
    return (text + "\r\n\r\n").encode("latin-1")


def _send(sock: Any, head: bytes, body: bytes | None) -> int:
    """Write a request; its size in bytes."""
    if body is None or len(body) <= _JOINED_BYTES:
        parts = [head if body is None else head + body]
    else:
        parts = [head, body]
    size = sum(map(len, parts))
    try:
        if len(parts) == 1 or isinstance(sock, ssl.SSLSocket):
            for part in parts:
                sent = sock.send(part)
                if sent < len(part):
                    sock.sendall(memoryview(part)[sent:])
        else:
            # In one call, which wakes the other end once; it takes less than all if it is slow.
            sent = sock.sendmsg(parts)
            if sent < len(head):
                sock.sendall(head[sent:])
            if sent < size:
                sock.sendall(memoryview(parts[1])[max(sent - len(head), 0) :])
    except BrokenPipeError:
        pass  # it may have answered before it closed, e.g. that the body is too large
    return size


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


def _as_urllib3(error: BaseException, pool: Any) -> HTTPError | None:
    """A failure as urllib3 would say it; None for what is no failure of the exchange, such as the
    client's going away."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return urllib3.exceptions.SSLError(error)
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(pool, "", "the answer's head did not come in time")
    if isinstance(error, OSError | http.client.HTTPException):
        return ProtocolError("Connection aborted.", error)
    return None
