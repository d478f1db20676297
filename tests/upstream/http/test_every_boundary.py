"""Whole answers, byte by byte: the same at every boundary, and broken at every truncation."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ProtocolError

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.upstream.http.body import BodyBroken
from tests.fakes.raw_server import chunked, head, whole
from tests.kit.feeding import at
from tests.kit.given_answer import answer_of
from tests.kit.properties import examples

pytestmark = pytest.mark.once

STREAMS = sorted((Path(__file__).parents[2] / "corpus/sse").glob("*.sse"))
#: Good streams that end with `[DONE]`.
TEXT, CALLS, USAGE = (
    next(path for path in STREAMS if path.name.startswith(number)).read_bytes()
    for number in ("001", "004", "005")
)
INTERIM: Final = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
JSON: Final = b'{"choices":[{"message":{"content":"h\xc3\xa9"}}]}'


def in_chunks(data: bytes, size: int) -> bytes:
    return chunked(*(data[i : i + size] for i in range(0, len(data), size)))


def coded(data: bytes, **headers: str) -> bytes:
    return head(transfer_encoding="chunked", **headers) + data


#: The bytes of an answer and its body. Each says itself where it ends.
ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "a length": (whole(JSON), JSON),
    "a length, behind an interim answer": (INTERIM + whole(JSON), JSON),
    "an error with a length": (whole(JSON, "429 Too Many Requests", retry_after="3"), JSON),
    "a stream": (coded(in_chunks(TEXT, 300)), TEXT),
    "a stream in many chunks": (INTERIM + coded(in_chunks(CALLS, 37)), CALLS),
    "a stream of one chunk": (coded(chunked(USAGE)), USAGE),
    "extensions and trailers": (
        coded(b"5;a=b\r\nhello\r\n6 ; x=y\r\n world\r\n0;z\r\nX-A: 1\r\nX-B:\r\n\r\n"),
        b"hello world",
    ),
    "gzip with a length": (whole(gzip.compress(JSON), content_encoding="gzip"), JSON),
    "gzip in chunks": (
        coded(in_chunks(gzip.compress(TEXT), 50), content_encoding="gzip"),
        TEXT,
    ),
    "members of gzip in chunks": (
        coded(in_chunks(gzip.compress(JSON) + gzip.compress(JSON), 20), content_encoding="x-gzip"),
        JSON * 2,
    ),
}

each_answer = pytest.mark.parametrize("name", ANSWERS)


def broken(read: Callable[[], Any]) -> bool:
    """Whether reading fails in one of the ways that the transport knows to explain."""
    try:
        read()
    except (BodyBroken, ProtocolError, ConnectionResetError):
        return True
    return False


@each_answer
def test_an_answer_is_the_same_with_any_boundary(name: str) -> None:
    data, body = ANSWERS[name]
    for place in range(len(data)):
        assert answer_of(at(data, [place]))[1] == body, place
    assert answer_of(at(data, range(len(data))))[1] == body


@examples(150)
@given(st.sampled_from(sorted(ANSWERS)), st.data())
def test_an_answer_is_the_same_with_any_boundaries(name: str, data: st.DataObject) -> None:
    raw, body = ANSWERS[name]
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=40).map(sorted))
    assert answer_of(at(raw, places))[1] == body


@each_answer
def test_every_truncation_is_broken(name: str) -> None:
    data, _ = ANSWERS[name]
    for place in range(len(data)):
        assert broken(partial(answer_of, [data[:place]])), place


@each_answer
def test_a_changed_byte_is_broken_or_harmless(name: str) -> None:
    """Whatever byte is another one, reading ends: in an answer, or in a failure that is known."""
    data, _ = ANSWERS[name]
    for place in range(len(data)):
        for byte in (0, 0x0A, 0x30, data[place] ^ 0x80):
            changed = data[:place] + bytes([byte]) + data[place + 1 :]
            whole_, halves = (
                broken(partial(answer_of, cut)) for cut in ([changed], at(changed, [place]))
            )
            assert whole_ == halves, (place, byte)


@pytest.mark.parametrize("stream", [TEXT, CALLS, USAGE], ids=["text", "calls", "usage"])
def test_a_stream_without_framing_is_complete_only_with_its_end(stream: bytes) -> None:
    """It ends with its connection; then a part of it has no finish, and is no answer."""
    start = head(content_type="text/event-stream", connection="close")
    verdicts = []
    for place in range(len(stream) + 1):
        _, body = answer_of([start, stream[:place]])
        assert body == stream[:place]
        blocks, chunks = sse.EventBlocks(), ChunkStream(hide_usage=False)
        chunks.feed(blocks.push(body))
        chunks.end()
        verdicts.append(chunks.complete)

    finish = max(stream.rfind(b'"finish_reason":"'), stream.rfind(b'"finish_reason": "'))
    assert verdicts[-1]
    assert not any(verdicts[: stream.index(b"\n\n", finish) + 2])
