"""Reading an upstream answer's body as it arrives.

`requests` can hand on a body only in pieces of a fixed size, or chunk by chunk with a parse each,
and after a read timeout the response is dead. This reader takes what one `recv` gives, undoes the
chunked coding itself, and can be read again after a timeout: that is what makes one write per
read, keep-alives and idle timeouts possible without a second greenlet.
"""

from __future__ import annotations

import functools
import re
import ssl
import zlib
from typing import Any, Final

import requests
import urllib3

from qwen_wsgi.greenlets import TimedReads
from qwen_wsgi.upstream.http.http1 import PooledResponse

#: 16 kB reads keep a stream at about 65 kB of memory; 64 kB reads cost 25 kB more and gain nothing.
READ_BYTES: Final = 16 * 1024
#: For the read after one that was full: fewer and larger writes in a burst.
BURST_BYTES: Final = 64 * 1024

#: A size line without extensions is not longer, its line end included.
_SHORT_SIZE: Final = 10

#: From this size on, what one read brought is likely to hold many chunks.
_MANY_BYTES: Final = 2048

#: Behind a payload's own line end.
_SIZE_LINE: Final = re.compile(rb"\r\n([0-9a-fA-F]+)\r\n")

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"

#: Longest chunk-size line that is believed, extensions included.
_MAX_SIZE_LINE: Final = 4096


class BodyBroken(Exception):
    """The connection ended, or its framing broke, before the body did."""


class ReadTimeout(Exception):
    """Nothing arrived in time; the reader may be read again."""


@functools.lru_cache(maxsize=4096)
def _size_of(digits: bytes) -> int:
    """A chunk size; -1 if it is none. The chunks of a stream have few different sizes."""
    # int() alone would take a sign, underscores, and 0x.
    if not digits or digits.strip(_HEX_DIGITS):
        return -1
    return int(digits, 16)


def _take_many_chunks(data: bytes, index: int, out: list[bytes]) -> int:
    """A burst, without a loop in Python: payloads take turns with what looks like a size line.

    All but the last one, of whose end the caller takes care. If a payload holds what looks so, or
    is of another length, none is taken.
    """
    end = data.find(b"\r\n", index, index + _SHORT_SIZE)
    if end < 0:
        return index
    parts = _SIZE_LINE.split(data[end + 2 :])
    sizes, payloads = [data[index:end], *parts[1:-2:2]], parts[:-1:2]
    lengths = list(map(_size_of, sizes))
    if len(parts) == 1 or lengths != list(map(len, payloads)):
        return index
    out += payloads
    return index + sum(lengths) + sum(map(len, sizes)) + 4 * len(sizes)


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
        """The payload in `data`. Bytes after the end are dropped: they answer no request.

        Raises:
            BodyBroken: this is not chunked coding.
        """
        out: list[bytes] = []
        index = 0
        size = len(data)
        while index < size and not self.ended:
            if not (self._left or self._end or self._line or self._trailer):
                index = self._take_whole_chunks(data, index, out)
                if index >= size:
                    break
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

    @staticmethod
    def _take_whole_chunks(data: bytes, index: int, out: list[bytes]) -> int:
        """The common case, in local variables: chunks that are here from size to end."""
        find, size = data.find, len(data)
        if size - index > _MANY_BYTES:
            index = _take_many_chunks(data, index, out)
        while (end := find(b"\r\n", index, index + _SHORT_SIZE)) > 0:
            length = _size_of(data[index:end])
            stop = end + 2 + length
            if length <= 0 or stop + 2 > size or not data.startswith(b"\r\n", stop):
                break
            out.append(data[end + 2 : stop])
            index = stop + 2
        return index

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
        length = _size_of(digits)
        if length < 0:
            raise BodyBroken("a chunk size that is no hexadecimal number")
        if length == 0:
            self._trailer = True
        else:
            self._left = length


class BodyReader:
    """The body of one streamed response; owns the response until `close`.

    Not thread safe. A `PooledResponse` has its reads at hand. Under a response of urllib3 (behind
    an HTTP proxy, or a test's) the socket is reached for by private names; where they are not
    found, or the body came compressed, `raw.read1` does the work, whose timeout is the response's
    own.
    """

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._raw: Any = response.raw
        self._ended = False
        self._closed = False
        self._stalled = False
        self._size = READ_BYTES
        self._inflate: Any = None
        self._length: int | None = None
        if isinstance(self._raw, PooledResponse):
            self._reads: TimedReads | None = self._raw.reads
            self._first = self._raw.first
            self._inflate = _inflater(self._raw.headers.get("content-encoding", ""))
            length = self._raw.length
        else:
            self._reads, self._first = _take_socket(self._raw)
            length = self._raw.length_remaining if self._reads is not None else None
        self._chunked = ChunkedDecoder() if self._reads and self._raw.chunked else None
        if self._reads is not None and self._chunked is None:
            self._length = length
            self._ended = length == 0

    def read(self, timeout_s: float) -> bytes:
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
            if data and self._inflate is not None:
                data = self._inflated(data)
            if data:
                return data
        return b""

    def _inflated(self, data: bytes) -> bytes:
        try:
            plain: bytes = self._inflate.decompress(data)
        except zlib.error:
            raise BodyBroken("the body is not compressed as its header says") from None
        if self._ended and not self._inflate.eof:
            raise BodyBroken("the compressed body ended early")
        return plain

    def _receive(self, timeout_s: float) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            if self._reads is None:
                return self._read_through_response()
            self._reads.limit(timeout_s)
            data = self._reads.recv(self._size)
        except (TimeoutError, urllib3.exceptions.ReadTimeoutError):
            raise ReadTimeout from None
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise BodyBroken(f"{type(error).__name__} while reading") from error
        # Only an upstream in a burst gets the larger buffer, which costs memory for each stream.
        self._size = BURST_BYTES if len(data) >= READ_BYTES else READ_BYTES
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
        if self._reads is not None:
            self._reads.stop()
        if self._ended and self._reads is not None:
            # http.client refuses a second request before the first response object is closed.
            if isinstance(self._raw, PooledResponse):
                self._raw.release()
            else:
                self._raw._fp.close()
                self._raw.release_conn()
        elif isinstance(self._raw, PooledResponse):
            self._raw.close()
        else:
            self._response.close()


def _inflater(encoding: str) -> Any:
    """What undoes a content coding; None if there is none.

    We ask for none (`Accept-Encoding: identity`), but some gateways compress all the same.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # finds out which of both it is
    return _UnknownCoding(coding)


class _UnknownCoding:
    """Stands where a decompressor should be, and says at the first bytes that there is none."""

    eof = False

    def __init__(self, coding: str) -> None:
        self._coding = coding[:20]

    def decompress(self, data: bytes) -> bytes:
        raise BodyBroken(f"the body is compressed by {self._coding!r}, which was not asked for")


def _take_socket(raw: Any) -> tuple[TimedReads | None, bytes]:
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
        first = buffered.read(len(first)) if first else b""
        return TimedReads(socket, before or 1.0), first  # each read sets its own
    except (AttributeError, OSError, ValueError):
        return None, b""
