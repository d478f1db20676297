"""Reading an upstream answer's body as it arrives.

`requests` can hand on a body only in pieces of a fixed size, or chunk by chunk with a parse each,
and after a read timeout the response is dead. This reader takes what one `recv` gives, undoes the
chunked coding itself, and can be asked again after a timeout: that is what makes one write per
read, keep-alives and idle timeouts possible without a second greenlet.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import requests
import urllib3

#: 16 kB reads keep a stream at about 65 kB of memory; 64 kB reads cost 25 kB more and gain nothing.
READ_BYTES: Final = 16 * 1024

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"

#: Longest chunk-size line that is believed, extensions included.
_MAX_SIZE_LINE: Final = 4096


class BodyBroken(Exception):
    """The connection ended, or its framing broke, before the body did."""


class ReadTimeout(Exception):
    """Nothing arrived in time. The reader may be asked again."""


class ChunkedDecoder:
    """Undoes HTTP/1.1 chunked coding (RFC 9112 §7.1), fed at any boundaries. Pure.

    Attributes:
        ended: the last chunk and its trailers were seen.
    """

    __slots__ = ("_end", "_left", "_line", "_trailer", "ended")

    def __init__(self) -> None:
        self._left = 0  # payload bytes still to come of the current chunk
        self._end = b""  # what is still to come of the CRLF behind it
        self._line = b""  # an incomplete size or trailer line
        self._trailer = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Bytes after the end are dropped: nothing was asked for them.

        Raises:
            BodyBroken: this is not chunked coding.
        """
        out = []
        index = 0
        size = len(data)
        while index < size and not self.ended:
            if left := self._left:
                piece = data[index : index + left]
                out.append(piece)
                index += len(piece)
                self._left = left - len(piece)
                if not self._left:
                    self._end = b"\r\n"
            elif self._end:
                got = data[index : index + len(self._end)]
                if not self._end.startswith(got):
                    raise BodyBroken("a chunk that does not end where it said")
                self._end = self._end[len(got) :]
                index += len(got)
            else:
                index = self._read_line(data, index)
        return out[0] if len(out) == 1 else b"".join(out)

    def _read_line(self, data: bytes, index: int) -> int:
        end = data.find(b"\n", index)
        line = self._line + (data[index:] if end < 0 else data[index:end])
        if len(line) > _MAX_SIZE_LINE:
            raise BodyBroken("a chunk-size line without an end")
        if end < 0:
            self._line = line
            return len(data)
        self._line = b""
        self._take_line(line)
        return end + 1

    def _take_line(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if self._trailer:
            self.ended = not line
            return
        digits = line.split(b";", 1)[0].strip()
        # int() alone would take a sign, underscores, and 0x.
        if not digits or digits.strip(_HEX_DIGITS):
            raise BodyBroken("a chunk size that is no hexadecimal number")
        length = int(digits, 16)
        if length == 0:
            self._trailer = True
        else:
            self._left = length


class BodyReader:
    """The body of one streamed response; owns the response until `close`.

    Not thread safe. Reaches for the socket under the response, which is no public interface of
    urllib3: where it is not found (another version, a body that came compressed, a test's fake),
    the reader falls back on `raw.read1`, whose timeout is the response's own.
    """

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._raw: Any = response.raw
        self._ended = False
        self._closed = False
        self._stalled = False
        self._timeout_s: float | None = -1.0
        self._socket, self._first = _take_socket(self._raw)
        self._chunked = ChunkedDecoder() if self._socket and self._raw.chunked else None
        self._length: int | None = None
        if self._socket is not None and self._chunked is None:
            self._length = self._raw.length_remaining
            self._ended = self._length == 0

    def read(self, timeout_s: float | None) -> bytes:
        """What arrives next, at least one byte; `b""` at the end of the body.

        Raises:
            ReadTimeout: nothing for `timeout_s` seconds; ask again or give up.
            BodyBroken: the connection ended before the body.
        """
        while not self._ended:
            data = self._receive(timeout_s)
            if self._chunked is not None:
                data = self._chunked.feed(data)
                self._ended = self._chunked.ended
            elif self._length is not None:
                data = data[: self._length]
                self._length -= len(data)
                self._ended = self._length == 0
            if data:
                return data
        return b""

    def _receive(self, timeout_s: float | None) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            if self._socket is None:
                return self._read_through_response()
            if timeout_s != self._timeout_s:
                self._socket.settimeout(timeout_s)
                self._timeout_s = timeout_s
            data: bytes = self._socket.recv(READ_BYTES)
        except (TimeoutError, urllib3.exceptions.ReadTimeoutError):
            raise ReadTimeout from None
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise BodyBroken(f"{type(error).__name__} while reading") from error
        if not data:
            if self._chunked is not None or self._length is not None:
                raise BodyBroken("the connection ended early")
            self._ended = True  # a body without framing ends with its connection
        return data

    def _read_through_response(self) -> bytes:
        if self._stalled:
            # http.client answers a read after a timeout with an end that never came.
            raise BodyBroken("the connection stalled")
        try:
            data: bytes = self._raw.read1(READ_BYTES, decode_content=True)
        except (TimeoutError, urllib3.exceptions.ReadTimeoutError):
            self._stalled = True
            raise
        self._ended = not data
        return data

    def read_all(self, timeout_s: float, *, limit: int) -> bytes:
        """The whole rest, at most `limit` bytes of it; each read may take `timeout_s`.

        Raises:
            ReadTimeout, BodyBroken: as `read`.
        """
        parts = []
        size = 0
        while size < limit and (data := self.read(timeout_s)):
            parts.append(data)
            size += len(data)
        return b"".join(parts)[:limit]

    def close(self) -> None:
        """Let go of the response; its connection is kept for others only if the body ended."""
        if self._closed:
            return
        self._closed = True
        if self._ended and self._socket is not None:
            # http.client refuses a second request before the first response object is closed.
            self._raw._fp.close()
            self._raw.release_conn()
        else:
            self._response.close()


def _take_socket(raw: Any) -> tuple[Any, bytes]:
    """The socket under a response, and the body bytes that were read along with its head."""
    try:
        if raw.headers.get("content-encoding", "identity") != "identity":
            return None, b""
        buffered = raw._fp.fp
        socket = buffered.raw._sock
        before = socket.gettimeout()
        socket.settimeout(0)
        try:
            first = buffered.peek(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            first = b""
        finally:
            socket.settimeout(before)
        return socket, buffered.read(len(first)) if first else b""
    except (AttributeError, OSError, ValueError):
        return None, b""
