"""Chunked coding is undone at any boundaries, and what is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.upstream.http.body import BodyBroken, ChunkedDecoder, whole_chunks
from tests.kit.properties import examples

EXAMPLES = examples(150)


def decoded(coded: bytes, size: int) -> tuple[bytes, bool]:
    decoder = ChunkedDecoder()
    out = b"".join(decoder.feed(coded[i : i + size]) for i in range(0, len(coded), size))
    return out, decoder.ended


@EXAMPLES
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6),
    behind=st.sampled_from(
        [b"", b"0\r\n\r\n", b"1", b"\r\n", b"1\r\n", b"x\r\na\r\n", b"1\r\nab\n"]
    ),
    before=st.sampled_from([b"", b"", b"\r\n", b"-1\r\n", b"0", b"1;a\r\nb\r\n"]),
)
def test_whole_chunks_are_seen_only_where_the_decoder_sees_them(
    pieces: list[bytes], behind: bytes, before: bytes
) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    data = before + coded + behind

    found = whole_chunks(data)

    if not before + behind:
        assert [data[start:stop] for start, stop in found] == pieces
    if found:
        decoder = ChunkedDecoder()
        assert decoder.feed(data) == b"".join(data[start:stop] for start, stop in found)
        assert decoder.is_between


def test_a_burst_is_left_to_the_decoder() -> None:
    assert whole_chunks(b"1\r\na\r\n" * 500) == []


@st.composite
def codings(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A payload and one of the ways to code it."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    coded = b""
    for piece in pieces:
        size = b"%x" % len(piece)
        size = size.upper() if draw(st.booleans()) else size
        zeros = b"0" * draw(st.integers(0, 3))
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b' ; a="x;y"', b" "]))
        coded += zeros + size + extension + b"\r\n" + piece + b"\r\n"
    coded += draw(st.sampled_from([b"0", b"000", b"0;last"])) + b"\r\n"
    coded += b"".join(draw(st.lists(st.sampled_from([b"A: b\r\n", b"x-y:\r\n"]), max_size=2)))
    return b"".join(pieces), coded + b"\r\n"


@EXAMPLES
@given(coding=codings(), data=st.data())
def test_any_coding_is_undone_at_any_boundaries(
    coding: tuple[bytes, bytes], data: st.DataObject
) -> None:
    payload, coded = coding
    cuts = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=20)))
    decoder = ChunkedDecoder()

    out = b""
    for start, end in zip([0, *cuts], [*cuts, len(coded)], strict=True):
        assert not decoder.ended or start == len(coded)
        out += decoder.feed(coded[start:end])

    assert (out, decoder.ended) == (payload, True)


@EXAMPLES
@given(
    sizes=st.lists(st.integers(1, 300), min_size=20, max_size=60),
    ends_at=st.sampled_from([b"", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n"]),
    cut=st.integers(0, 12_000),
    line_ends=st.integers(0, 3),
)
def test_a_burst_of_many_chunks_in_one_read(
    sizes: list[int], ends_at: bytes, cut: int, line_ends: int
) -> None:
    pieces = [b"data: %03d\n\n" % size + b"x" * size for size in sizes]
    for index in range(line_ends):  # a line end inside a payload looks like one of the coding
        pieces[index * 7] += b"\r\n5\r\n"
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + ends_at
    decoder = ChunkedDecoder()

    out = decoder.feed(coded[:cut]) + decoder.feed(coded[cut:])

    assert (out, decoder.ended) == (b"".join(pieces), bool(ends_at))


@EXAMPLES
@given(
    texts=st.lists(
        st.binary(max_size=60) | st.sampled_from([4094, 4095, 4096, 9000]).map(lambda n: b"x" * n),
        min_size=20,
        max_size=60,
    ),
    spelt=st.sampled_from([b"%x", b"%X", b"%06x"]),
    odd=st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from(
                [
                    (b"a\n\nb\n\n", b"6"),  # two events
                    (b"a\n", b"2"),
                    (b"\r\n", b"2"),
                    (b"a\r\n\n", b"4;x"),
                    (b"a\n\n", b"0003"),
                    (b"a\n\n", b" 3"),
                ]
            ),
        ),
        max_size=2,
    ),
    end=st.sampled_from([b"", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"0\r\n\r\nHTTP/1.1 200 OK\r\n"]),
    cuts=st.lists(st.integers(0, 5000), max_size=3).map(sorted),
)
def test_a_burst_of_chunks_with_one_event_each(
    texts: list[bytes],
    spelt: bytes,
    odd: list[tuple[int, tuple[bytes, bytes]]],
    end: bytes,
    cuts: list[int],
) -> None:
    chunks = [(text + b"\n\n", spelt % (len(text) + 2)) for text in texts]
    for place, chunk in odd:
        chunks.insert(place, chunk)
    framed = b"".join(b"%b\r\n%b\r\n" % (size, payload) for payload, size in chunks) + end
    decoder, out = ChunkedDecoder(), b""

    for start, stop in zip([0, *cuts], [*cuts, len(framed)], strict=True):
        out += decoder.feed(framed[start:stop])

    assert out == b"".join(payload for payload, _ in chunks)
    assert decoder.ended == bool(end)
    assert decoder.surplus == end.endswith(b"OK\r\n")


@pytest.mark.parametrize("wrong", [b"3", b"5", b"+4", b"0x4", b"4_", b"", b"f" * 16])
@pytest.mark.parametrize("place", [0, 20, 39])
def test_a_wrong_size_within_a_burst_is_broken_framing(wrong: bytes, place: int) -> None:
    chunks = [b"4\r\nab\n\n\r\n"] * 200
    chunks[place] = wrong + b"\r\nab\n\n\r\n"

    with pytest.raises(BodyBroken):
        ChunkedDecoder().feed(b"".join(chunks))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("coded", "payload", "ended"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello", True),
        (b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n", b"hello world", True),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", True),
        (b"a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n\r\n\r\n", True),
        (b"5\r\nhel", b"hel", False),
        (b"5\r\nhello", b"hello", False),
        (b"5\r\nhello\r\n0\r\n", b"hello", False),
        (b"5\r\nhello\r\n0\r\nTrailer: x\r\n", b"hello", False),
        (b"0\r\n\r\n", b"", True),
        (b"", b"", False),
        (b"3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"abc", True),
    ],
)
def test_a_body_is_decoded_as_far_as_it_came(
    coded: bytes, payload: bytes, ended: bool, size: int
) -> None:
    assert decoded(coded, size) == (payload, ended)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "coded",
    [
        b"x\r\nhello\r\n",
        b"\r\n",
        b"-5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"5_0\r\nhello\r\n",
        b"5 5\r\nhello\r\n",
        b"\xd9\xa5\r\nhello\r\n",
        b";ext\r\n",
        b"3\r\nhello\r\n0\r\n\r\n",
        b"<html>\n",
        b"HTTP/1.1 200 OK\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
    ],
)
def test_what_is_no_chunked_coding_is_refused(coded: bytes, size: int) -> None:
    with pytest.raises(BodyBroken):
        decoded(coded, size)


@pytest.mark.parametrize(
    "size",
    [
        1,
        1000,
        100_000,
    ],
)
def test_a_size_line_without_an_end_is_refused(size: int) -> None:
    with pytest.raises(BodyBroken):
        decoded(b"5;" + b"x" * 10_000 + b"\r\nhello\r\n0\r\n\r\n", size)


def test_a_size_line_of_a_reasonable_length_is_taken() -> None:
    coded = b"5;" + b"x" * 1000 + b"\r\nhello\r\n0\r\n\r\n"

    for size in (1, 100, 10_000):
        assert decoded(coded, size) == (b"hello", True)


def test_a_chunk_that_comes_in_one_read_with_its_size_passes_uncopied_but_for_the_cut() -> None:
    decoder = ChunkedDecoder()

    assert decoder.feed(b"5\r\nhello\r\n") == b"hello"
    assert decoder.feed(b"") == b""
    assert decoder.feed(b"0\r\n\r\n") == b""
    assert decoder.ended
    assert decoder.feed(b"5\r\nhello\r\n") == b""


def test_a_big_chunk_is_decoded_in_linear_time() -> None:
    payload = bytes(8 * 1024 * 1024)
    coded = b"%x\r\n%s\r\n0\r\n\r\n" % (len(payload), payload)

    assert decoded(coded, 16_384) == (payload, True)
