"""One exchange with a client, as gunicorn has it, without what is the same for each of them.

gunicorn asks for every request anew who its peer is, and makes its environ and each line of its
answer from nothing. Here what holds for a connection is made with it, and what holds for a worker
once. Who may say what in a header, and how a message ends, is gunicorn's alone.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from gunicorn import SERVER_SOFTWARE, util
from gunicorn.http import wsgi
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import TOKEN_RE, Request
from gunicorn.http.parser import RequestParser

from qwen_wsgi import heads
from qwen_wsgi.heads import Head, Heads
from qwen_wsgi.protocol.sse import PASSAGE, LastPiece

#: A value of a header that nothing has to be done with.
_PLAIN_VALUE: Final = re.compile(r"[!-~](?:[ !-~]*[!-~])?")

#: A status whose answer is a final one.
_STATUS: Final = re.compile(r"[2-5][0-9][0-9] [ -~]+")

#: A length of a body. Other spellings of numbers are gunicorn's to judge.
_LENGTH: Final = re.compile(r"[0-9]{1,15}")

#: Names of headers that say something about the message itself: gunicorn reads them.
_FRAMING: Final = util.hop_headers | {"content-length"}

#: Different names of headers that are remembered; an application has a few dozen.
_NAMES: Final = 512

_LAST_CHUNK: Final = b"0\r\n\r\n"


class ClientRequest(Request):
    """gunicorn's request, which looks once for a connection what its peer may say.

    Attributes:
        head: what was read in the same head before; None if gunicorn has read this one.
        closes: whether the head asks for the connection's end; None before gunicorn was asked.
    """

    head: Head | None = None
    closes: bool | None = None

    @classmethod
    def again(cls, head: Head, length: bytes, unreader: Any, peer: Any) -> ClientRequest:
        """A request with a head that was read before.

        Args:
            length: the digits of its body's length.
        """
        request = cls.__new__(cls)
        told = vars(request)
        told.update(head.request)
        headers = [*head.headers]
        headers[head.length_at] = ("CONTENT-LENGTH", length.decode("ascii"))
        told |= {
            "head": head,
            "headers": headers,
            "trailers": [],
            "unreader": unreader,
            "peer_addr": peer,
            "remote_addr": peer,
            "body": ClientBody(LengthReader(unreader, int(length))),
        }
        return request

    def should_close(self) -> bool:
        if self.must_close:
            return True
        if self.closes is None:
            gunicorns: Any = super()
            self.closes = bool(gunicorns.should_close())
        return self.closes

    def set_body_reader(self) -> None:
        gunicorns: Any = super()
        gunicorns.set_body_reader()
        body: Any = self.body  # it is there now
        if body.reader.__class__ is LengthReader:
            self.body = ClientBody(body.reader)

    def _peer_is_trusted_proxy(self) -> bool:
        connection: Any = self.unreader
        gunicorns: Any = super()
        try:
            found: bool = connection.trusted
        except AttributeError:
            found = connection.trusted = gunicorns._peer_is_trusted_proxy()
        return found


class _Incoming(io.RawIOBase):
    """The rest of a body, which the kernel writes into the memory that it is read into.

    Attributes:
        missing: bytes that the source has not given yet.

    Args:
        begun: what of it is there already.
        source: the client's socket.
    """

    def __init__(self, begun: bytes, source: Any, missing: int) -> None:
        self._begun = begun
        self._source = source
        self.missing = missing

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        # Released in any case: the memory is the reader's, and a traceback may outlive it.
        with memory:
            begun, self._begun = self._begun, b""
            held = len(begun)
            if held:
                memory[:held] = begun
            if not self.missing:
                return held
            with memory[held:] as left:
                count: int = self._source.recv_into(left)
        self.missing -= count
        return held + count


class ClientBody(Body):
    """gunicorn's body of a known length, which can be had as a whole without a copy of it."""

    reader: Any

    def read(self, size: int | None = None) -> bytes:
        held = self._take_held() if size and size == self.reader.length else None
        if held is not None:
            return held
        gunicorns: Any = super()
        data: bytes = gunicorns.read(size)
        return data

    def _take_held(self) -> bytes | None:
        """The whole body, if all of it came with the head and nothing of it was read."""
        reader = self.reader
        unreader, length = reader.unreader, reader.length
        if self.buf.tell() or unreader.buf.getbuffer().nbytes < length:
            return None
        data: bytes = unreader.buf.getvalue()
        unreader.buf = io.BytesIO()
        reader.length = 0
        if len(data) > length:
            unreader.unread(data[length:])
            data = data[:length]
        return data

    def read_whole(self) -> bytes:
        """All that is missing of it; less if it ends early. Raises what the client's socket does.

        The kernel writes into the object that is returned. gunicorn puts what it reads through
        three buffers, and a buffer that grows is copied again and again.
        """
        try:
            return self._read_whole()
        except Exception:
            self.failed = True
            raise

    def _read_whole(self) -> bytes:
        reader, begun = self.reader, self.buf.getvalue()
        self.buf = io.BytesIO()
        size = len(begun) + reader.length
        held = min(reader.length, reader.unreader.buf.getbuffer().nbytes)
        if held:
            begun += reader.read(held)  # came with the head
        if not reader.length:
            return begun
        rest = _Incoming(begun, reader.unreader.sock, reader.length)
        try:
            # What is read beyond a buffer goes straight into the bytes that are returned. They are
            # neither zeroed before nor copied after it, and none of their memory is touched before
            # something is there.
            return io.BufferedReader(rest, 1).read(size)
        finally:
            reader.length = rest.missing


class ClientParser(RequestParser):
    """gunicorn's parser of a connection's requests, which knows when a body was read to its end."""

    mesg_class = ClientRequest

    def __init__(self, cfg: Any, source: Any, peer: Any, heads: Heads) -> None:
        super().__init__(cfg, source, peer)
        self._heads = heads
        #: What gunicorn reads in a head depends on it: it may be that of a trusted proxy.
        self._host: str = peer[0] if isinstance(peer, tuple) else ""

    def __next__(self) -> Any:
        if self.cfg.proxy_protocol != "off":
            return super().__next__()
        before: Any = self.mesg
        if before is not None and (before.should_close() or self.finish_body() is False):
            raise StopIteration
        unreader: Any = self.unreader
        if before is not None and not unreader.buf.getbuffer().nbytes:
            unreader.sock.await_request()
        data = unreader.read()
        if not data:
            raise StopIteration
        came = heads.came(data, self._host)
        head = None if came is None else self._heads.get(came.key)
        if came is None or head is None:
            unreader.unread(data)
            request = super().__next__()
            if came is not None and self._heads.wants(came.key):
                self._heads.keep(came.key, request, _told_by(request))
            return request
        unreader.unread(came.rest)
        self.mesg = ClientRequest.again(head, came.length, unreader, self.source_addr)
        return self.mesg

    def finish_body(self, *args: Any, **kwargs: Any) -> Any:
        if self.mesg is not None:
            body: Any = self.mesg.body
            reader = body.reader
            if reader.__class__ is LengthReader and not reader.length and _is_whole(body):
                return True
        return super().finish_body(*args, **kwargs)


def _is_whole(body: Any) -> bool:
    """Whether nothing failed while a body was read, and nothing of it is left."""
    return not getattr(body, "failed", False) and not body.buf.tell()


@functools.lru_cache(maxsize=_NAMES)
def _kind_of(name: str) -> str | None:
    """None for a header that says nothing about the message itself; else its name in small letters,
    or "" if it can be no name."""
    lowered = name.lower()
    if not TOKEN_RE.fullmatch(name):
        return ""
    return lowered if lowered in _FRAMING else None


@functools.lru_cache(maxsize=_NAMES)
def _code_with_body(status: str) -> int | None:
    """The code of a status whose answers have a body; None for another one, and for what is no
    status."""
    if not _STATUS.fullmatch(status):
        return None
    code = int(status[:3])
    return None if code in (204, 304) else code


class Answer(wsgi.Response):
    """gunicorn's answer to a request: plain headers as they are, and chunks in one write.

    Attributes:
        ended: the end of the body was sent with its last piece.
    """

    ended = False
    #: What of a passed piece the client's socket could not take at once.
    _rest = b""

    def offer_passage(self, environ: dict[str, Any]) -> None:
        """Let the application send pieces otherwise than by yielding them."""
        environ[PASSAGE] = self._passage

    def _passage(self) -> Callable[[bytes], bool] | None:
        """A way to send pieces of the body that must not wait; None where there is none (yet).

        It says whether it has sent the piece. What it has sent in part is sent by the next `write`.

        Raises (the way itself):
            TimeoutError: it was sent in part.
        """
        sock: Any = self.sock
        if self.ended or not (self.chunked and self.headers_sent):
            return None
        send: Callable[[bytes], int] | None = sock.sends_at_once()
        if send is None:
            return None

        def pass_on(data: bytes) -> bool:
            if self._rest or self.ended:
                return False
            chunk = b"%X\r\n%b\r\n" % (len(data), data)
            try:
                sent = send(chunk)
            except OSError:
                return False  # it cannot take anything now, or is gone: `write` will tell
            self.sent += len(data)
            if sent < len(chunk):
                self._rest = chunk[sent:]
                raise TimeoutError("sent in part")
            return True

        return pass_on

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        code = _code_with_body(status) if isinstance(status, str) else None
        request: Any = self.req
        if code is None or exc_info or self.status is not None or request.method == "HEAD":
            return super().start_response(status, headers, exc_info)
        told: Any = self  # gunicorn begins with None
        told.status, told.status_code = status, code
        self.process_headers(headers)
        self.chunked = self.response_length is None and self.is_chunked()
        return self.write

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        plain: Any = _PLAIN_VALUE.fullmatch
        kept: Any = self.headers
        for each in headers:
            name, value = each
            if value.__class__ is str and plain(value):
                kind = _kind_of(name)
                if kind is None:
                    kept.append(each)
                    continue
                if kind == "content-length" and _LENGTH.fullmatch(value):
                    self.response_length: int | None = int(value)
                    kept.append(each)
                    continue
            super().process_headers([each])

    def _head(self) -> bytes:
        """The answer's head, which is being sent."""
        connection = "upgrade" if self.upgrade else "close" if self.should_close() else "keep-alive"
        request: Any = self.req  # its version is known
        lines = [f"{_protocol(request.version)} {self.status}", f"Server: {self.version}"]
        lines += [f"Date: {_date(int(time.time()))}", f"Connection: {connection}"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append("\r\n")
        self.headers_sent = True
        return "\r\n".join(lines).encode("latin-1")

    def send_headers(self) -> None:
        if not self.headers_sent:
            self.sock.sendall(self._head())

    def write(self, data: bytes) -> None:
        if self.ended:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self.sock.sendall(rest)
        if not (self.chunked and data and isinstance(data, bytes)):
            if len(data) == self.response_length and not self.headers_sent:
                self._send_whole(data)
            else:
                super().write(data)
            return
        self.send_headers()
        self.sent += len(data)
        chunk = b"%X\r\n%b\r\n" % (len(data), data)
        if data.__class__ is LastPiece:
            self.ended = True
            chunk += _LAST_CHUNK
        self.sock.sendall(chunk)

    def _send_whole(self, data: bytes) -> None:
        """Send all of an answer at once."""
        sock: Any = self.sock
        self.sent = len(data)
        sock.send_whole(self._head() + data)

    def close(self) -> None:
        if self.ended:
            return
        if self.chunked and self.headers_sent:
            self.sock.sendall(_LAST_CHUNK)
        else:
            super().close()


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    """The time for a header; each second has one."""
    return util.http_date()


class Surroundings:
    """Makes the environs of one connection's requests.

    Args:
        sock: the client's.
        peer: its address: a host and a port, or the path of a socket.
        listener: the address that it came to.
    """

    def __init__(self, sock: Any, peer: Any, listener: Any, *, workers: int) -> None:
        self._sock = sock
        self._peer = peer
        self._common = _common_of(listener, workers)
        #: The listener's name is the client's to say where it has none of its own.
        self._named = not isinstance(listener, str)

    def of(self, request: Any) -> dict[str, Any]:
        """The environ of a request."""
        head: Head | None = request.head
        environ = {
            **self._common,
            **(_told_by(request) if head is None else head.environ),
            "wsgi.input": request.body,
            "gunicorn.socket": self._sock,
        }
        peer = self._peer
        if isinstance(peer, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer[0], str(peer[1])
        else:
            environ["REMOTE_ADDR"] = peer.decode() if isinstance(peer, bytes) else peer
        if head is not None:
            environ["CONTENT_LENGTH"] = request.headers[head.length_at][1]
        if not self._named:
            self._name(environ)
        return environ

    @staticmethod
    def _name(environ: dict[str, Any]) -> None:
        """WSGI wants a name and a port also for a socket that is a file."""
        host, _, port = environ.get("HTTP_HOST", "").partition(":")
        if host:
            environ["SERVER_NAME"] = host
            environ["SERVER_PORT"] = port or {"http": "80", "https": "443"}.get(
                environ["wsgi.url_scheme"], ""
            )


@functools.lru_cache(maxsize=16)
def _common_of(listener: Any, workers: int) -> Mapping[str, Any]:
    """What all environs of a listener's connections have."""
    host, port = (listener, "") if isinstance(listener, str) else listener[:2]
    return {
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": workers > 1,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "SERVER_SOFTWARE": SERVER_SOFTWARE,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SCRIPT_NAME": "",
    }


def _told_by(request: Any) -> dict[str, Any]:
    """What the head of a request adds to the environ."""
    path: str = request.path
    is_literal = "%" not in path and path.isascii()
    environ = {
        "wsgi.url_scheme": request.scheme,
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.query,
        "RAW_URI": request.uri,
        "SERVER_PROTOCOL": _protocol(request.version),
        "PATH_INFO": path if is_literal else util.unquote_to_wsgi_str(path),
    }
    for name, value in request.headers:
        key = _key_of(name)
        # gunicorn has refused repeated ones of those that may not be; others are joined.
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


@functools.lru_cache(maxsize=4)
def _protocol(version: tuple[int, int]) -> str:
    return "HTTP/{}.{}".format(*version)


@functools.lru_cache(maxsize=_NAMES)
def _key_of(name: str) -> str:
    """A header's name in the environ."""
    key = name.replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
