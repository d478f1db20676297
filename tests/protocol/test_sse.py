"""Server-sent events are read the same however the bytes are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol import sse
from tests.kit.feeding import random_cuts, ways_to_cut
from tests.kit.properties import examples

EXAMPLES = examples(150)


def fed(pieces: list[bytes]) -> tuple[bytes, bytes]:
    """All blocks joined, and what is held back at the end; each block is of whole events."""
    blocks = sse.EventBlocks()
    out = b""
    for piece in pieces:
        block = blocks.push(piece)
        assert block == b"" or block.endswith(b"\n\n"), f"{block!r} ends inside an event"
        out += block
    return out, blocks.rest()


STREAMS = {
    "LF": (
        b'data: {"a":1}\n\n: hello\n\ndata: {"b":"\xc3\xa9\xf0\x9f\x98\x80"}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n\n: hello\n\ndata: {"b":"\xc3\xa9\xf0\x9f\x98\x80"}\n\ndata: [DONE]\n\n',
        b"",
    ),
    "CRLF": (b"data: 1\r\n\r\nid: 2\r\ndata: 2\r\n\r\n", b"data: 1\n\nid: 2\ndata: 2\n\n", b""),
    "CR": (b"data: 1\r\rid: 2\rdata: 2\r\r", b"data: 1\n\nid: 2\ndata: 2\n\n", b""),
    "mixed line ends": (b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\n\r", None, b""),
    "an unfinished event": (b"data: 1\n\ndata: 2\nda", b"data: 1\n\n", b"data: 2\nda"),
    "one line end is no blank line": (b"data: 1\n", b"", b"data: 1\n"),
    "several blank lines": (b"data: 1\n\n\n\ndata: 2\n\n", None, b""),
    "blank lines first": (b"\n\ndata: 1\n\n", None, b""),
}


@pytest.mark.parametrize("name", STREAMS)
def test_blocks_are_the_same_however_the_stream_is_cut(name: str) -> None:
    data, expected, rest = STREAMS[name]
    for how, pieces in ways_to_cut(data):
        out, held = fed(pieces)
        found = list(sse.events(out))
        if expected is not None:
            assert out == expected, how
        assert found == list(sse.events(fed([data])[0])), how
        assert held.strip(b"\n") == rest.strip(b"\n"), how


def test_a_single_byte_is_held_back() -> None:
    blocks = sse.EventBlocks()

    assert blocks.push(b"d") == b""
    assert blocks.push(b"ata: 1\n\nd") == b"data: 1\n\n"
    assert blocks.push(b"ata: 2\n\n") == b"data: 2\n\n"


def test_a_block_that_ends_with_its_event_passes_uncopied() -> None:
    data = b"data: 1\n\ndata: 2\n\n"

    assert sse.EventBlocks().push(data) is data


def test_an_empty_push_changes_nothing() -> None:
    blocks = sse.EventBlocks()
    assert blocks.push(b"") == b""
    assert blocks.push(b"data: 1\r") == b""
    assert blocks.push(b"") == b""

    assert blocks.push(b"\n\r\n") == b"data: 1\n\n"


def test_a_byte_order_mark_is_removed_at_the_beginning_only() -> None:
    blocks = sse.EventBlocks()

    assert blocks.push(b"\xef\xbb\xbfdata: \xef\xbb\xbf\n\n") == b"data: \xef\xbb\xbf\n\n"
    assert blocks.push(b"\xef\xbb\xbfdata: 2\n\n") == b"\xef\xbb\xbfdata: 2\n\n"


def test_a_byte_order_mark_is_removed_however_it_is_cut() -> None:
    for how, pieces in ways_to_cut(b"\xef\xbb\xbfdata: 1\n\n"):
        assert fed(pieces)[0] == b"data: 1\n\n", how


LINES = st.lists(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20),
    min_size=1,
    max_size=3,
)
LINE_END = st.sampled_from(["\n", "\r\n", "\r"])


@EXAMPLES
@given(data=st.data(), payloads=st.lists(LINES, max_size=6), end=LINE_END)
def test_payloads_come_out_as_they_went_in(
    data: st.DataObject, payloads: list[list[str]], end: str
) -> None:
    """For any payload lines, any line end and any cut: `data(events(push(…)))` is the payload."""
    text = "".join("".join(f"data: {line}{end}" for line in lines) + end for lines in payloads)
    pieces = data.draw(random_cuts(text.encode()))

    out, rest = fed(pieces)

    assert [sse.data(event) for event in sse.events(out)] == [
        "\n".join(lines).encode() for lines in payloads
    ]
    assert rest.strip(b"\n") == b""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@EXAMPLES
@given(data=st.data(), values=st.lists(JSON, min_size=1, max_size=6))
def test_rendered_values_parse_back(data: st.DataObject, values: list[Any]) -> None:
    stream = b"".join(map(sse.render, values))
    pieces = [piece for piece in data.draw(random_cuts(stream)) if piece]
    if any(len(piece) == 1 for piece in pieces):
        pieces = [stream]  # single bytes have tests of their own

    out, rest = fed(pieces)

    assert out == stream
    assert [sse.parse(event) for event in sse.events(out)] == values
    assert rest == b""


def test_a_rendered_event_is_compact_utf8_on_one_line() -> None:
    assert sse.render({"a": "é\n😀", "b": [1, None]}) == (
        'data: {"a":"é\\n😀","b":[1,null]}\n\n'.encode()
    )


def test_a_value_with_half_a_surrogate_pair_can_be_rendered() -> None:
    """An upstream that cuts an emoji in two sends such halves in consecutive chunks."""
    event = sse.render({"content": json.loads('"\\ud83d"')})

    assert sse.parse(event.strip()) == {"content": "\ud83d"}


def test_a_huge_event_in_small_reads_comes_out_whole_and_in_linear_time() -> None:
    event = b"data: " + b"x" * (20 * 1024 * 1024) + b"\n\n"
    blocks = sse.EventBlocks()
    out = [blocks.push(event[i : i + 16_384]) for i in range(0, len(event), 16_384)]

    assert [len(block) for block in out if block] == [len(event)]
    assert out[-1] == event


def test_an_event_that_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is made small here; the real one would cost the test 64 MiB."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    blocks = sse.EventBlocks()
    with pytest.raises(sse.EventTooLarge, match="1000 bytes"):
        for _ in range(300):
            blocks.push(b"data: 1234\n")


def test_many_events_below_the_limit_are_no_event_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    blocks = sse.EventBlocks()

    total = sum(len(blocks.push(b"a: 1234\n\ndata: 12")) for _ in range(1000))

    assert total > 15_000


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b"data: x", b"x"),
        (b"data:x", b"x"),
        (b"data:  x ", b" x "),
        (b"data:", b""),
        (b"data: 1\ndata: 2", b"1\n2"),
        (b"id: 1\nevent: e\ndata: x\nretry: 5", b"x"),
        (b": data: x", None),
        (b"event: ping", None),
        (b"datum: x", None),
        (b"database: x", None),
        (b"", None),
    ],
)
def test_the_payload_of_an_event_is_its_data_lines(event: bytes, payload: bytes | None) -> None:
    assert sse.data(event) == payload


@pytest.mark.parametrize("event", [b"data: [DONE]", b"data: {", b": x", b"data: \xff", b""])
def test_an_event_that_is_no_json_parses_to_none(event: bytes) -> None:
    assert sse.parse(event) is None


@pytest.mark.parametrize(
    ("event", "done"),
    [
        (b"data: [DONE]", True),
        (b"data:[DONE]", True),
        (b"data:  [DONE] ", True),
        (b": x\ndata: [DONE]\nid: 1", True),
        (b'data: "[DONE]"', False),
        (b'data: {"content":"[DONE]"}', False),
        (b"data: [DONE]x", False),
        (b": [DONE]", False),
        (b"", False),
    ],
)
def test_the_end_of_a_stream_is_an_event_of_its_own(event: bytes, done: bool) -> None:
    assert sse.is_done(event) is done
