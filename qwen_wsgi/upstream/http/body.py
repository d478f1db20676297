"""Reading an upstream answer's body as it arrives.

`requests` can hand on a body only in pieces of a fixed size, or chunk by chunk with a parse each,
and after a read timeout the response is dead. This reader takes what one `recv` gives, undoes the
chunked coding itself, and can be read again after a timeout: that is what makes one write per
read, keep-alives and idle timeouts possible without a second greenlet.
"""

from __future__ import annotations

import contextlib
import functools
import io
import ssl
import time
import zlib
from collections.abc import Callable
from itertools import starmap
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

#: From this size on, to take many chunks at once is cheaper than one by one (decision 094).
_SEVERAL_BYTES: Final = 2048
#: The most that is passed on from the event loop: a few chunks.
_FEW_BYTES: Final = 2048

#: The size lines of shorter events are kept.
_USUAL_BYTES: Final = 4096

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"

#: The last chunk, without trailers.
_LAST_CHUNK: Final = b"0\r\n\r\n"

#: Longest chunk-size line that is believed, extensions included.
_MAX_SIZE_LINE: Final = 4096

#: A longer number of a chunk's size is no size: that is 2**60 bytes.
_SIZE_DIGITS: Final = 15

#: Trailers, which nobody reads: so many, and so many bytes of them.
_TRAILERS: Final = 64
_TRAILER_BYTES: Final = 16 * 1024
#: The body is complete before them, so they are not waited for much longer.
_TRAILERS_S: Final = 0.2

#: What one step of decompressing may give; the rest of what was received waits for the next.
_PLAIN_BYTES: Final = 256 * 1024

#: How many times its size a compressed body may grow, beyond a first megabyte. Streams of equal
#: chunks stay below 50, a bomb is at 1000.
_RATIO: Final = 200
_FREE_BYTES: Final = 1 << 20

#: Members of a gzip that hold nothing, in a row.
_EMPTY_MEMBERS: Final = 16

#: zlib's numbers: a format that it finds out itself (gzip or zlib), and gzip alone.
_ANY_WINDOW: Final = 32 + zlib.MAX_WBITS
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class BodyBroken(Exception):
    """The connection ended, or its framing broke, before the body did."""


class BodyTooLarge(Exception):
    """The body is larger than its reader takes; the rest was not read."""


class ReadTimeout(Exception):
    """Nothing arrived in time; the reader may be read again."""


@functools.lru_cache(maxsize=4096)
def _size_of(digits: bytes) -> int:
    """A chunk size; -1 if it is none. The chunks of a stream have few different sizes."""
    # int() alone would take a sign, underscores, and 0x.
    if not digits or len(digits) > _SIZE_DIGITS or digits.strip(_HEX_DIGITS):
        return -1
    return int(digits, 16)


class _SizeLines(dict[int, bytes]):
    """The size lines of chunks with one event, as nearly all servers write them: by the bytes of
    the event's line, which is one less than the chunk's for the blank line."""

    def __missing__(self, event: int) -> bytes:
        line = b"%x\r\n" % (event + 1)
        if event < _USUAL_BYTES:
            self[event] = line
        return line


_SIZE_LINES: Final = _SizeLines()


def _take_many_chunks(data: bytes, index: int, out: list[bytes]) -> int:
    """A burst of chunks with one event each, without a loop in Python.

    Four lines take turns then: a size, the event, the blank line behind it, and the chunk's own
    end. If that is not so everywhere, none is taken. Lines are found by C's `memchr`, which looks
    at 32 bytes at a time; what splits looks at each.
    """
    with io.BytesIO(data) as source:
        source.seek(index)
        lines = source.readlines()
    count = len(lines) // 4
    if count and lines[4 * count - 1] != b"\r\n":
        count -= 1  # the end of the last one is still to come
    behind = 4 * count
    events, sizes = lines[1:behind:4], lines[:behind:4]
    if (
        not count
        or lines[2:behind:4].count(b"\n") != count
        or lines[3:behind:4].count(b"\r\n") != count
    ):
        return index
    # Capitals and zeros in front are rare, and looked at one by one.
    is_usual = [*map(_SIZE_LINES.__getitem__, map(len, events))] == sizes
    if not (is_usual or all(starmap(_is_size, set(zip(sizes, map(len, events), strict=True))))):
        return index
    events.append(b"")
    out.append(b"\n".join(events))
    return len(data) - sum(map(len, lines[behind:]))


def _is_size(line: bytes, event: int) -> bool:
    """Whether a line is the size of a chunk that has an event's line of such a length."""
    return len(line) <= _SHORT_SIZE and line.endswith(b"\r\n") and _size_of(line[:-2]) == event + 1


def whole_chunks(data: bytes) -> list[tuple[int, int]]:
    """Where the payloads of some chunks begin and end; none unless the data are a few whole chunks,
    the first of them from its size on, and not the last one of a body."""
    places: list[tuple[int, int]] = []
    size, at = len(data), 0
    if size > _FEW_BYTES:
        return places
    while at < size:
        start = data.find(b"\r\n", at, at + _SHORT_SIZE) + 2
        length = _size_of(data[at : start - 2]) if start > 2 else 0
        stop = start + length
        if length <= 0 or not data.startswith(b"\r\n", stop):
            return []
        places.append((start, stop))
        at = stop + 2
    return places


class ChunkedDecoder:
    """Undoes HTTP/1.1 chunked coding (RFC 9112 §7.1), fed at any boundaries. Pure.

    Attributes:
        in_trailers: the last chunk was seen: the body is complete.
        ended: the last chunk and its trailers were seen, or more trailers than are read.
        surplus: something came behind them.
    """

    __slots__ = ("_end", "_left", "_line", "_trailers", "ended", "in_trailers", "surplus")

    def __init__(self) -> None:
        self._left = 0  # payload bytes still to come of the current chunk
        self._end = b""  # what is still to come of the CRLF behind it
        self._line = b""  # an incomplete size or trailer line
        self.in_trailers = False
        self._trailers = [0, 0]  # how many, and their bytes
        self.ended = self.surplus = False

    @property
    def is_between(self) -> bool:
        """Whether the next byte is the first one of a chunk's size."""
        held = self._left or self._end or self._line
        return not (held or self.in_trailers or self.ended)

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Bytes after the end are dropped: they answer no request.

        Raises:
            BodyBroken: this is not chunked coding.
        """
        out: list[bytes] = []
        index = 0
        size = len(data)
        while index < size and not self.ended:
            if not (self._left or self._end or self._line or self.in_trailers):
                index = self._take_whole_chunks(data, index, out)
                if index >= size:
                    break
                if data.startswith(_LAST_CHUNK, index):  # as nearly all bodies end
                    index += len(_LAST_CHUNK)
                    self.in_trailers = self.ended = True
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
        self.surplus = self.surplus or index < size
        return out[0] if len(out) == 1 else b"".join(out)

    @staticmethod
    def _take_whole_chunks(data: bytes, index: int, out: list[bytes]) -> int:
        """The common case, in local variables: chunks that are here from size to end."""
        find, size = data.find, len(data)
        if size - index > _SEVERAL_BYTES:
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
            if self.in_trailers:
                self._take_trailer(line)
                self.ended = self.surplus = True
                return len(data)
            raise BodyBroken("a chunk-size line without an end")
        if end < 0:
            self._line = line
            return len(data)
        self._line = b""
        self._take_line(line)
        return end + 1

    def _take_line(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if self.in_trailers:
            self._take_trailer(line)
            return
        digits = line.split(b";", 1)[0].strip()
        length = _size_of(digits)
        if length < 0:
            raise BodyBroken("a chunk size that is no hexadecimal number")
        if length == 0:
            self.in_trailers = True
        else:
            self._left = length

    def _take_trailer(self, line: bytes) -> None:
        """Drop a trailer. An empty line is the end; so are too many of them, which make a
        connection that cannot be used again."""
        count, size = self._trailers
        self._trailers = [count + 1, size + len(line)]
        if count >= _TRAILERS or size + len(line) > _TRAILER_BYTES:
            self.ended = self.surplus = True
        self.ended = self.ended or not line


class _Inflater:
    """Undoes gzip, one member after the other, or zlib, in steps of bounded size. Pure.

    Args:
        coding: the name of the content coding.
    """

    def __init__(self, coding: str) -> None:
        #: None for a coding that is not known.
        self._member: Any = None
        self._coding = coding[:20]
        if coding in ("gzip", "x-gzip", "deflate"):
            self._member = zlib.decompressobj(wbits=_ANY_WINDOW)
        self._held = b""  # received, and not decompressed yet
        self._is_gzip: bool | None = None
        self._in_member = False
        self._taken = self._given = self._empty = 0

    def feed(self, data: bytes) -> bytes:
        """What comes out of `data`, or its first part: `more` gives the rest.

        Raises:
            BodyBroken: it is not compressed as its header says, or grows beyond all measure.
        """
        if self._member is None:
            raise BodyBroken(f"the body is compressed by {self._coding!r}, which was not asked for")
        if self._is_gzip is None:
            self._is_gzip = data.startswith(b"\x1f")
        self._taken += len(data)
        self._held += data
        return self.more()

    def more(self) -> bytes:
        """The next part of what was fed; `b""` if there is none.

        Raises:
            BodyBroken: as `feed`.
        """
        plain = b""
        while self._held and not plain:
            if self._member.eof:
                self._next_member()
            plain = self._step()
        return plain

    def _step(self) -> bytes:
        member = self._member
        try:
            plain: bytes = member.decompress(self._held, _PLAIN_BYTES)
        except zlib.error:
            raise BodyBroken("the body is not compressed as its header says") from None
        self._held = member.unused_data if member.eof else member.unconsumed_tail
        self._in_member = not member.eof
        if plain:
            self._empty = 0
            self._given += len(plain)
            if self._given > _FREE_BYTES + _RATIO * self._taken:
                raise BodyBroken(f"the body grows to more than {_RATIO} times its size")
        return plain

    def _next_member(self) -> None:
        self._empty += 1
        if not self._is_gzip or self._empty > _EMPTY_MEMBERS:
            raise BodyBroken("there is something behind the end of the compressed body")
        self._member = zlib.decompressobj(wbits=_GZIP_WINDOW)

    def end(self) -> None:
        """Check that the end of the body is the end of what was compressed.

        Raises:
            BodyBroken: it is not.
        """
        if self._in_member:
            raise BodyBroken("the compressed body ended early")


class BodyReader:
    """The body of one streamed response; owns the response until `close`.

    Not thread safe. A `PooledResponse` has its reads at hand. Under a response of urllib3 (behind
    an HTTP proxy, or a test's) the socket is reached for by private names; where they are not
    found, `raw.read1` does the work, whose timeout is the response's own.

    Attributes:
        length: what the head says of the body's length; None where it says nothing.
    """

    def __init__(self, response: requests.Response | PooledResponse) -> None:
        try:
            self._response = response
            self._raw: Any = response if isinstance(response, PooledResponse) else response.raw
            self._ended = False
            self._closed = False
            self._stalled = False
            self._size = READ_BYTES
            self._surplus = False
            self._passing: Callable[[bytes], bool] | None = None
            self._length: int | None = None
            coding = self._raw.headers.get("content-encoding")
            self._inflate = None if coding is None else _inflater(coding)
            if isinstance(self._raw, PooledResponse):
                self._reads: TimedReads | None = self._raw.reads
                self._first = self._raw.first
                length = self._raw.length
            else:
                self._reads, self._first = _take_socket(self._raw)
                length = self._raw.length_remaining if self._reads is not None else None
            self._chunked = ChunkedDecoder() if self._reads and self._raw.chunked else None
            self.length: int | None = None
            if self._reads is not None and self._chunked is None:
                self._length = self.length = length
                self._ended = length == 0
                self._surplus = self._ended and self._first != b""
        except BaseException:
            response.raw.close()  # nobody else knows it yet
            raise

    def read(self, timeout_s: float) -> bytes:
        """What arrives next, at least one byte; `b""` at the end of the body.

        Raises:
            ReadTimeout: nothing for `timeout_s` seconds; ask again or give up.
            BodyBroken: the connection ended before the body.
        """
        end_s = 0.0
        if self._inflate is not None and (data := self._inflate.more()):
            return data
        while not self._ended:
            if self._chunked is not None and self._chunked.in_trailers:
                self._skip_trailers(self._chunked)
                break
            data = self._receive(timeout_s)
            if self._chunked is not None:
                data = self._chunked.feed(data)
                self._ended = self._chunked.ended
            elif self._length is not None:
                if len(data) > self._length:
                    data, self._surplus = data[: self._length], True
                self._length -= len(data)
                self._ended = self._length == 0
            if data and self._inflate is not None:
                data = self._inflate.feed(data)
            if data:
                return data
            # Something came that is nothing of the body: it does not extend the time.
            now_s = time.monotonic()
            end_s = end_s or now_s + timeout_s
            timeout_s = end_s - now_s
            if timeout_s <= 0 and not self._ended:
                raise ReadTimeout
        if self._inflate is not None:
            self._inflate.end()
        return b""

    def pass_chunks(self, passing: Callable[[bytes], bool] | None) -> None:
        """Let what arrives while the next `read` waits be passed on from the event loop.

        Args:
            passing: takes what was received and says whether it was taken, see `TimedReads`. It
                may take whole chunks alone, and is asked only where one may begin.
        """
        self._passing = passing if self._chunked is not None and self._inflate is None else None

    def _skip_trailers(self, chunked: ChunkedDecoder) -> None:
        """Read the trailers, for a moment; a connection on which they do not end is closed.

        Raises:
            BodyBroken: the connection ended before them.
        """
        end_s = time.monotonic() + _TRAILERS_S
        with contextlib.suppress(ReadTimeout):
            while not chunked.ended and (left_s := end_s - time.monotonic()) > 0:
                chunked.feed(self._receive(left_s))
        self._surplus = self._surplus or not chunked.ended
        self._ended = True

    def _receive(self, timeout_s: float) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            if len(first) >= READ_BYTES:
                self._size = BURST_BYTES
            return first
        try:
            if self._reads is None:
                return self._read_through_response()
            self._reads.limit(timeout_s)
            passing, chunked = self._passing, self._chunked
            may_pass = passing is not None and chunked is not None and chunked.is_between
            self._reads.passing = passing if may_pass else None
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
            data: bytes = self._raw.read1(READ_BYTES, decode_content=False)
        except (TimeoutError, urllib3.exceptions.ReadTimeoutError):
            self._stalled = True
            raise
        self._ended = not data
        return data

    def read_all(
        self,
        timeout_s: float,
        *,
        limit: int,
        cut: bool = False,
        count: Callable[[int], None] | None = None,
    ) -> bytes:
        """The whole rest of the body.

        Args:
            timeout_s: for all of it, however many pieces it comes in.
            limit: the most bytes that are read.
            cut: leave out what is beyond the limit.
            count: called with the bytes of each piece; what it raises ends the reading.

        Raises:
            ReadTimeout: it did not come in time.
            BodyTooLarge: there is more than the limit.
            BodyBroken: as `read`.
        """
        if not cut and self.length is not None and self.length > limit:
            raise BodyTooLarge
        end_s = time.monotonic() + timeout_s
        # Grows in place and gives its bytes away: to join pieces would copy all of them at once.
        with io.BytesIO() as body:  # closed, because a traceback may keep it for a while
            while data := self.read(timeout_s):
                left = limit - body.tell()
                if len(data) > left:
                    if not cut:
                        raise BodyTooLarge
                    body.write(data[:left])
                    break
                body.write(data)
                if count is not None:
                    count(len(data))
                timeout_s = end_s - time.monotonic()
                if timeout_s <= 0:
                    raise ReadTimeout
            return body.getvalue()

    def close(self) -> None:
        """Let go of the response; its connection is kept for others only if the body ended."""
        if self._closed:
            return
        self._closed = True
        self._passing = None  # its owner knows this object, too
        try:
            if self._reads is not None:
                self._reads.stop()
        except BaseException:
            self._raw.close()
            raise
        surplus = self._surplus or (self._chunked is not None and self._chunked.surplus)
        if self._ended and self._reads is not None and not surplus:
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


def _inflater(encoding: str) -> _Inflater | None:
    """What undoes a content coding; None if there is none.

    We ask for none (`Accept-Encoding: identity`), but some gateways compress all the same.
    """
    coding = encoding.strip().lower()
    return None if coding in ("", "identity") else _Inflater(coding)


def _take_socket(raw: Any) -> tuple[TimedReads | None, bytes]:
    """The socket under a response, and the body bytes that were read along with its head."""
    try:
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
