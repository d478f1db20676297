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
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from gunicorn import SERVER_SOFTWARE, util
from gunicorn.http import wsgi
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import TOKEN_RE, Request
from gunicorn.http.parser import RequestParser

from qwen_wsgi.protocol.sse import PASSAGE, LastPiece

#: A value of a header that nothing has to be done with.
_PLAIN_VALUE: Final = re.compile(r"[!-~](?:[ !-~]*[!-~])?")

#: Names of headers that say something about the message itself: gunicorn reads them.
_FRAMING: Final = util.hop_headers | {"content-length"}

#: Different names of headers that are remembered; an application has a few dozen.
_NAMES: Final = 512

_LAST_CHUNK: Final = b"0\r\n\r\n"


class ClientRequest(Request):
    """gunicorn's request, which looks once for a connection what its peer may say."""

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


#: Memory for a body is taken up to this size before anything of it came. When that is filled, more
#: is taken, but not all at once, because it costs time to have it: a fourth of what there is.
_FIRST_BYTES: Final = 1 << 20
_MORE: Final = 4


class ClientBody(Body):
    """gunicorn's body of a known length, which can be had as a whole without a copy of it."""

    reader: Any

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
        source, got = reader.unreader.sock, len(begun)
        # The zeroes are the system's: no memory is touched before something is there.
        whole = io.BytesIO(bytes(min(size, _FIRST_BYTES)))
        whole.write(begun)
        while got < size:
            room = len(whole.getbuffer())
            if got == room:
                whole.seek(min(size, room + max(room // _MORE, _FIRST_BYTES)) - 1)
                whole.write(b"\0")
                continue
            with whole.getbuffer() as memory:
                count = source.recv_into(memory[got:])
            if not count:
                whole.truncate(got)
                break
            got += count
            reader.length -= count
        return whole.getvalue()


class ClientParser(RequestParser):
    """gunicorn's parser of a connection's requests, which knows when a body was read to its end."""

    mesg_class = ClientRequest

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
def _is_plain(name: str) -> bool:
    """Whether a header says nothing about the message itself."""
    return bool(TOKEN_RE.fullmatch(name)) and name.lower() not in _FRAMING


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

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        plain, kept = _PLAIN_VALUE.fullmatch, cast(list[tuple[str, str]], self.headers)
        for each in headers:
            name, value = each
            if isinstance(value, str) and _is_plain(name) and plain(value):
                kept.append(each)
            else:
                super().process_headers([each])

    def send_headers(self) -> None:
        if self.headers_sent:
            return
        connection = "upgrade" if self.upgrade else "close" if self.should_close() else "keep-alive"
        request: Any = self.req  # its version is known
        lines = [f"{_protocol(request.version)} {self.status}", f"Server: {self.version}"]
        lines += [f"Date: {_date(int(time.time()))}", f"Connection: {connection}"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines.append("\r\n")
        self.sock.sendall("\r\n".join(lines).encode("latin-1"))
        self.headers_sent = True

    def write(self, data: bytes) -> None:
        if self.ended:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self.sock.sendall(rest)
        if not (self.chunked and data and isinstance(data, bytes)):
            super().write(data)
            return
        self.send_headers()
        self.sent += len(data)
        chunk = b"%X\r\n%b\r\n" % (len(data), data)
        if data.__class__ is LastPiece:
            self.ended = True
            chunk += _LAST_CHUNK
        self.sock.sendall(chunk)

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
        #: The listener's name is the client's to say where it has none of its own.
        self._named = not isinstance(listener, str)
        host, port = listener[:2] if self._named else (listener, "")
        self._common: dict[str, Any] = {
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
            "gunicorn.socket": sock,
        }
        if isinstance(peer, tuple):
            self._common |= {"REMOTE_ADDR": peer[0], "REMOTE_PORT": str(peer[1])}
        else:
            self._common["REMOTE_ADDR"] = peer.decode() if isinstance(peer, bytes) else peer

    def of(self, request: Any) -> dict[str, Any]:
        """The environ of a request."""
        path: str = request.path
        is_literal = "%" not in path and path.isascii()
        environ = {
            **self._common,
            "wsgi.input": request.body,
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


@functools.lru_cache(maxsize=4)
def _protocol(version: tuple[int, int]) -> str:
    return "HTTP/{}.{}".format(*version)


@functools.lru_cache(maxsize=_NAMES)
def _key_of(name: str) -> str:
    """A header's name in the environ."""
    key = name.replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
