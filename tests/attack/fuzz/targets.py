"""What must hold of each reader for any bytes whatever.

A target takes bytes and raises if something does not hold. The first byte mostly says how the rest
is cut, because whatever is read must be the same however it comes. Hypothesis (`test_targets.py`)
and atheris (`__main__.py`) give them bytes.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

from urllib3.exceptions import ProtocolError

from qwen_wsgi.api.files.form import UploadForm
from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError
from qwen_wsgi.protocol.websocket.frames import Close, Frames, Text
from qwen_wsgi.upstream.http.body import BodyBroken
from tests.kit.given_answer import answer_of, head_of

T = TypeVar("T")

#: Heads whose bodies are read differently.
FRAMINGS: Final = (
    b"transfer-encoding: chunked\r\n",
    b"content-length: 40\r\n",
    b"",
    b"transfer-encoding: chunked\r\ncontent-encoding: gzip\r\n",
    b"content-encoding: gzip\r\n",
    b"content-encoding: deflate\r\n",
    b"content-length: 60\r\ncontent-encoding: gzip\r\n",
)
#: Of a message of a WebSocket.
_MESSAGE_BYTES: Final = 300


class Broken:
    """It was refused, as it may be: what that is called may depend on how the bytes came."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Broken)

    __hash__ = None  # type: ignore[assignment]  # nobody needs it

    def __repr__(self) -> str:
        return "broken"


def cut(data: bytes, step: int) -> list[bytes]:
    """Pieces of so many bytes, or all in one for 0."""
    return [data[i : i + step] for i in range(0, len(data), step)] if step else [data]


def _or_broken(read: Callable[[], T], *refusals: type[Exception]) -> T | Broken:
    try:
        return read()
    except refusals:
        return Broken()


def _step(data: bytes) -> tuple[int, bytes]:
    return (data[0] % 16, data[1:]) if data else (0, b"")


# --- what upstreams send -------------------------------------------------------------------------


def head(data: bytes) -> None:
    """The head of an answer: read or refused, and nothing in it that forges another header."""
    step, data = _step(data)

    def read(pieces: list[bytes]) -> Any:
        found, _ = head_of(pieces)
        return found

    refusals = (ProtocolError, ConnectionResetError)
    found = _or_broken(lambda: read([data]), *refusals)
    assert _or_broken(lambda: read(cut(data, step)), *refusals) == found
    if not isinstance(found, Broken):
        assert 200 <= found.status <= 999
        texts = [found.reason, *found.headers, *found.headers.values()]
        assert not any(set("\0\r\n") & set(text) for text in texts)


def body(data: bytes) -> None:
    """A body in every framing: the same bytes for every cut, or broken for every cut; and a part of
    it is no other whole."""
    kind, data = (data[0], data[1:]) if data else (0, b"")
    step, data = _step(data)
    start = b"HTTP/1.1 200 OK\r\n" + FRAMINGS[kind % len(FRAMINGS)] + b"\r\n"

    def read(pieces: list[bytes]) -> bytes | Broken:
        return _or_broken(lambda: answer_of([start, *pieces])[1], BodyBroken, ProtocolError)

    found = read([data])
    assert read(cut(data, step)) == found
    if step and not isinstance(found, Broken):
        part = read([data[: len(data) * step // 16]])
        assert isinstance(part, Broken) or found.startswith(part)
        if kind % len(FRAMINGS) == 0:
            assert _dechunked(data) == found
        if kind % len(FRAMINGS) == 4 and data.startswith(b"\x1f"):
            assert gzip.decompress(data) == found


def _dechunked(data: bytes) -> bytes:
    """RFC 9112 §7.1, in the simplest way; a lone LF ends a line, too (§2.2)."""
    out = b""
    while True:
        line, _, data = data.partition(b"\n")
        found = re.match(rb"[0-9a-fA-F]+", line.strip())
        assert found, line
        size = int(found[0], 16)
        if not size:
            return out
        out += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


def events(data: bytes) -> None:
    """Server-sent events: for every cut those that the standard's own way of reading finds."""
    step, data = _step(data)
    blocks = sse.EventBlocks()
    found: list[bytes] = []
    for piece in cut(data, step):
        block = blocks.push(piece)
        assert not block or block.endswith(b"\n\n")
        found += (payload for e in sse.events(block) if (payload := sse.data(e)) is not None)
        for event in sse.events(block):
            sse.parse(event)
            assert sse.is_done(event) in (False, (sse.data(event) or b"").strip() == b"[DONE]")
    assert found == list(_payloads(data))


def _payloads(data: bytes) -> Iterator[bytes]:
    """WHATWG HTML §9.2.6, line by line; what has no blank line at its end is no event."""
    lines = re.split(rb"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf"))
    payload: list[bytes] = []
    for line in lines[:-1]:
        if line.startswith(b"data:"):
            payload.append(line[5:].removeprefix(b" "))
        elif not line and payload:
            yield b"\n".join(payload)
            payload = []


def chunks(data: bytes) -> None:
    """A chat stream: for every cut the same verdict, and nothing but events for the client.

    What is broken JSON in a block of chunks that look as they should is passed on, as the upstream
    sent it; alone it is left out. So it is the verdict that is compared.
    """
    kind, data = (data[0], data[1:]) if data else (0, b"")
    step, data = _step(data)

    def verdict(pieces: list[bytes]) -> object:
        blocks = sse.EventBlocks()
        stream = ChunkStream(hide_usage=bool(kind & 1), normalize=bool(kind & 2))
        out = b""
        for piece in pieces:
            # As the relay does: nothing is read behind the end.
            if not (stream.done or stream.failed) and (block := blocks.push(piece)):
                out += stream.feed(block)
        out += stream.end()
        assert not out or out.endswith(b"\n\n")
        return stream.complete, stream.failed, stream.finished, stream.done, stream.usage

    assert verdict(cut(data, step)) == verdict([data])


# --- what clients send ---------------------------------------------------------------------------

_DECISIVE: Final = ("model", "n", "stream")


def json_body(data: bytes) -> None:
    """A JSON body: taken exactly if the standard library takes it, with the same values; a change
    of one member leaves the others' text alone."""
    try:
        pairs = _pairs(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        pairs = None
    try:
        found = JsonObject(data)
    except JsonObjectError:
        assert pairs is None
        return
    assert pairs is not None
    assert repr({name: found[name] for name in sorted(found.names())}) == repr(
        {name: value for name, value in sorted(dict(pairs).items())}
    )
    counts = [name for name, _ in pairs]
    repeated = found.repeated(_DECISIVE)
    assert (repeated is not None) == any(counts.count(name) > 1 for name in _DECISIVE)
    assert found.render() == found.source
    changed = JsonObject(found.render({"model": "other"}, drop=("n",)))
    expected = {name: v for name, v in pairs if name not in ("n", "model")} | {"model": "other"}
    assert repr({name: changed[name] for name in sorted(changed.names())}) == repr(
        {name: value for name, value in sorted(expected.items())}
    )


def _pairs(data: bytes) -> list[tuple[str, Any]]:
    """The members of an object, as the standard library reads them.

    Raises:
        ValueError, RecursionError: it is no JSON object.
    """

    def refuse(name: str) -> None:
        raise ValueError(name)

    class Members(dict[str, Any]):
        pairs: list[tuple[str, Any]]

    def take(pairs: list[tuple[str, Any]]) -> Members:
        members = Members(pairs)
        members.pairs = pairs
        return members

    found = json.loads(data.decode(), object_pairs_hook=take, parse_constant=refuse)
    if not isinstance(found, Members):
        raise ValueError("no object")
    return found.pairs


def frames(data: bytes) -> None:
    """Frames of a WebSocket: for every cut the same messages, none above its bound.

    Of two rules that one message breaks, it depends on the cut which one closes the connection.
    """
    step, data = _step(data)

    def received(pieces: list[bytes]) -> list[object]:
        reader = Frames(_MESSAGE_BYTES)
        found: list[object] = []
        for piece in pieces:
            for message in reader.receive(piece):
                found.append("closed" if isinstance(message, Close) else message)
                if isinstance(message, Text):
                    assert len(message.data) <= _MESSAGE_BYTES
                    message.data.decode()
                if isinstance(message, Close):
                    reader.close(message)
                    return found
            assert reader.held <= _MESSAGE_BYTES
        return found

    assert received(cut(data, step)) == received([data])


def form(data: bytes) -> None:
    """The form of an upload: read or refused, however it is cut; and what was read came.

    Werkzeug takes a lone CR or LF for the end of a line, and then it depends on the cut what a
    broken form is. Forms that keep to CRLF are the same for every cut (`test_form.py`).
    """
    step, data = _step(data)

    def read(pieces: list[bytes]) -> bytes:
        found = UploadForm("multipart/form-data; boundary=b-b", iter(pieces))
        found.begin()
        return b"".join(found.file_pieces())

    for pieces in ([data], cut(data, step)):
        content = _or_broken(partial(read, pieces), BadRequest)
        assert isinstance(content, Broken) or content in data


#: By the name that the command line takes.
TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    each.__name__: each for each in (head, body, events, chunks, json_body, frames, form)
}


def seeds(name: str) -> list[bytes]:
    """Bytes from which a search may begin: good ones, so that it comes beyond the first check."""
    chunked = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
    packed = gzip.compress(b"hello ") + gzip.compress(b"world" * 20)
    coded = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
    call = (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","type":'
        b'"function","function":{"name":"f","arguments":"{}"}}]},"finish_reason":null}]}\n\n'
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\ndata: [DONE]\n\n'
    )
    by_name = {
        "head": [
            b"\3HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n\r\n",
            b"\1HTTP/1.0 404 Not Found\r\nconnection: keep-alive\r\n\r\n",
        ],
        "body": [
            b"\0\3" + chunked,
            b"\1\2" + b"x" * 40,
            b"\2\5anything",
            b"\3\7" + coded,
            b"\4\4" + packed,
            b"\5\4" + zlib.compress(b"hello" * 9),
            b"\6\4" + packed[:60],
        ],
        "events": [b"\3\xef\xbb\xbfdata: 1\r\n\r\nid: 2\rdata: 2\r\r: x\n\ndata: [DONE]\n\n"],
        "chunks": [bytes([kind, 5]) + call for kind in range(4)],
        "json_body": [
            b'{"model":"m","n":1,"messages":[{"role":"user","content":"\\ud83d \xc3\xa9"}]}',
            b'\xef\xbb\xbf{ "\\u006dodel": 1e3, "model": -0.0, "x": [true, null, {}] }',
        ],
        "frames": [
            b"\3\x81\x85\0\0\0\0hello\x89\x81\0\0\0\0p\x88\x82\0\0\0\0\x03\xe8",
            b"\3\x01\x82\1\2\3\4hi\x80\xfe\0\x80\0\0\0\0" + b"a" * 128,
        ],
        "form": [
            b'\3--b-b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--b-b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
            b"Content-Type: text/plain\r\n\r\n{}\r\n--b-\r\n-\r\n--b-b--\r\n",
        ],
    }
    return by_name[name]
