"""Many events that came at once are sent and noted as if each had come alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.upstream.http.body import ChunkedDecoder
from tests.kit.feeding import random_cuts
from tests.kit.properties import examples

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "qwen"}


def written(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    value = {**HEAD, "choices": choices, **more}
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def arguments(text: str) -> bytes:
    return written({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})


CALL = written({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]})
FINISH = written({}, "stop")
TEXTS = st.sampled_from(
    ["a", " the", "é", "你好", "\n", "\\", '"', '\\"', '","finish_reason":"stop', "\n\ndata: ", ""]
)
#: Events that come many times in a row, and those between them.
RUNS = st.one_of(
    st.lists(TEXTS, min_size=1, max_size=60).map(
        lambda texts: [written({"content": text}) for text in texts]
    ),
    st.lists(TEXTS, min_size=1, max_size=30).map(
        lambda texts: [written({"reasoning_content": text}) for text in texts]
    ),
    st.lists(TEXTS, min_size=1, max_size=30).map(
        lambda texts: [CALL, *(arguments(text) for text in texts)]
    ),
    st.lists(TEXTS, min_size=1, max_size=9).map(
        lambda texts: [written({"content": each}, x=[each]) for each in texts]
    ),
    st.sampled_from(
        [
            [written({"role": "assistant", "content": ""})],
            [written({"content": "x"}, usage={"total_tokens": 3, "completion_tokens": 1})],
            [written(None, usage={"total_tokens": 5})],
            [b": comment\n\n"],
            [b"\n"],
            [b'event: message\ndata: {"choices":[]}\n\n'],
            [b"data: {bad\n\n"],
            [FINISH],
            [b'data: {"error":{"message":"no"}}\n\n'],
            [sse.DONE],
        ]
    ),
)
STREAMS = st.lists(RUNS, max_size=6).map(lambda runs: [each for run in runs for each in run])


class NoCarrier:
    """Stands for a carrier that learns nothing: each event is parsed."""

    is_ready = False

    def carry(self, events: bytes, start: int = 0) -> tuple[bytes, int, int]:
        return b"", 0, 0

    def learn(self, *_: Any, alike: bool) -> None: ...
    def forget(self) -> None: ...


def state_of(stream: ChunkStream) -> tuple[Any, ...]:
    ends = (stream.answered, stream.finished, stream.done, stream.failed, stream.complete)
    return stream.usage, stream.error, stream.error_finish, *ends


def coded(payload: bytes, sizes: list[int]) -> bytes:
    """The payload in chunks of HTTP, of these sizes in turn."""
    out, at, turn = b"", 0, 0
    while at < len(payload):
        size = sizes[turn % len(sizes)]
        piece = payload[at : at + size]
        out += b"%x\r\n%b\r\n" % (len(piece), piece)
        at, turn = at + size, turn + 1
    return out


@examples(150)
@given(
    events=STREAMS,
    normalize=st.booleans(),
    hide_usage=st.booleans(),
    model=st.sampled_from([None, ("qwen", 'mine "é"')]),
    crlf=st.booleans(),
    sizes=st.none() | st.lists(st.integers(1, 700), min_size=1, max_size=5),
    data=st.data(),
)
def test_a_burst_is_what_its_events_are_one_by_one(
    events: list[bytes],
    normalize: bool,
    hide_usage: bool,
    model: tuple[str, str] | None,
    crlf: bool,
    sizes: list[int] | None,
    data: st.DataObject,
) -> None:
    single, burst = [
        ChunkStream(hide_usage=hide_usage, normalize=normalize, model=model) for _ in range(2)
    ]
    single._carrier = NoCarrier()  # type: ignore[assignment]  # switched off
    expected = b"".join(single.feed(each) for each in events if not single.done) + single.end()
    sent = [each.replace(b"\n", b"\r\n") if crlf else each for each in events]
    # As upstreams do, each event is a chunk; or chunks end anywhere.
    framed = (
        b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in sent)
        if sizes is None
        else coded(b"".join(sent), sizes)
    )
    decoder, blocks, out, received = ChunkedDecoder(), sse.EventBlocks(), b"", 0
    count = 0

    for piece in data.draw(random_cuts(framed)):
        if (block := blocks.push(decoder.feed(piece))) and not (burst.done or burst.failed):
            out += burst.feed(block)
            received += burst.received
            count += block.count(b"\n\n")
    out += burst.end()

    assert [sse.parse(each) for each in sse.events(out)] == [
        sse.parse(each) for each in sse.events(expected)
    ]
    assert state_of(burst) == state_of(single)
    assert received == count


@pytest.mark.parametrize("odd", [0, 1, 150, 298])
def test_in_a_burst_only_the_events_that_differ_are_parsed(
    monkeypatch: pytest.MonkeyPatch, odd: int
) -> None:
    events = [written({"content": f"word {i}"}) for i in range(300)]
    events[odd] = written({"reasoning_content": "hm"})
    parsed: list[bytes] = []
    stream = ChunkStream(hide_usage=False, normalize=False)
    parse = stream._parsed

    def noted(event: bytes, line: bytes) -> bytes:
        parsed.append(event)
        return parse(event, line)

    monkeypatch.setattr(stream, "_parsed", noted)

    out = stream.feed(b"".join(events) + FINISH + sse.DONE)

    assert out == b"".join(events) + FINISH
    assert stream.received == 302
    # The first, the odd one, the one behind it, and the finish.
    assert len(parsed) <= 4
    assert events[odd] in parsed and FINISH in parsed


def test_where_every_event_differs_each_is_parsed_once() -> None:
    events = [written({"content": "a"}, x=i) for i in range(200)]
    stream = ChunkStream(hide_usage=False, normalize=False)

    assert stream.feed(b"".join(events)) == b"".join(events)
    assert stream.received == 200


BROKEN = written({"content": "x"}).replace(b'"x"', b'"\xe4\xbd"')


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("event", "kept"),
    [
        (BROKEN, True),
        (BROKEN.replace(b"null", b'"stop"'), False),
        (written({"content": "x"}).replace(b'"x"', b'"\\q"'), True),
        (b'data: {"choices"\n\n', False),
    ],
    ids=["broken UTF-8", "with a finish", "broken JSON", "no text"],
)
@pytest.mark.parametrize("others", [0, 1, 50])
def test_a_text_that_cannot_be_parsed_leaves_as_it_came(
    event: bytes, kept: bool, others: int, normalize: bool
) -> None:
    stream = ChunkStream(hide_usage=False, normalize=normalize)
    texts = written({"content": "a"}) * others

    out = stream.feed(texts + event + texts + FINISH + sse.DONE)

    assert out == texts + event * kept + texts + FINISH
    assert stream.answered == (kept or others > 0)
    assert stream.complete
