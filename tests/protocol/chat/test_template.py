"""Chunks that differ only in their text are forwarded without parsing, and no others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.template import Carrier, Template
from tests.kit.properties import examples

EXAMPLES = examples(150)


def event(text: str, **more: object) -> bytes:
    return sse.render({"choices": [{"delta": {"content": text, "x": None}}], "id": "c", **more})


def learned(event_: bytes, sent: bytes | None = None) -> Template:
    template = Template.learn(event_, event_ if sent is None else sent)
    assert template is not None
    return template


TEXTS = st.lists(
    st.text(max_size=6) | st.sampled_from(["", '"', "\\", '\\"', '","x":"', "\n\ndata: "]),
    min_size=1,
    max_size=8,
)


@EXAMPLES
@given(texts=TEXTS, escaped=st.booleans())
def test_chunks_that_differ_in_their_text_are_carried_as_they_are(
    texts: list[str], escaped: bool
) -> None:
    def written(text: str) -> bytes:
        value = {"choices": [{"delta": {"content": text}}]}
        return f"data: {json.dumps(value, ensure_ascii=escaped)}\n\n".encode("utf-8", "replace")

    block = b"".join(map(written, texts))

    assert learned(written("x")).carry(block) == (block, len(block), len(texts))


@EXAMPLES
@given(texts=TEXTS)
def test_what_the_client_got_for_one_it_gets_for_all(texts: list[str]) -> None:
    sent = [event(text, id="d", more=["data"]) for text in texts]
    block = b"".join(map(event, texts))

    carried = learned(event("x"), event("x", id="d", more=["data"])).carry(block)

    assert carried == (b"".join(sent), len(block), len(texts))


OTHERS = [
    event("x", id="d"),
    event("x", finish_reason="stop"),
    b": comment\n\n",
    b"\n",
    sse.DONE,
    event("x").replace(b"data: ", b"data:"),
    event("x").replace(b'"x":null', b'"x":"y"'),
    # whose beginning and end are right, and which is more than a text between
    event("x").replace(b'"x","x":null', b'"x","finish_reason":"stop","content":"y","x":null'),
    event("x").replace(b'"x","x":null', b'"x\n\ndata: y","x":null'),
    event("x").replace(b'"x","x":null', b'"x\\","x":null'),
]


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_chunk_that_differs_elsewhere_is_never_carried(
    other: bytes, before: int, after: int
) -> None:
    alike = event("a") * before

    carried = learned(event("x")).carry(alike + other + event("b") * after)

    assert carried == (alike, len(alike), before)


@EXAMPLES
@given(kinds=st.lists(st.sampled_from(["a", "b", "finish"]), max_size=12), start=st.integers(0, 3))
def test_events_are_carried_up_to_the_first_that_differs(kinds: list[str], start: int) -> None:
    def written(kind: str) -> bytes:
        return event(kind, finish_reason="stop") if kind == "finish" else event(kind)

    skipped, block = event("x") * start, b"".join(map(written, kinds))
    count = kinds.index("finish") if "finish" in kinds else len(kinds)
    fitting = b"".join(map(written, kinds[:count]))

    carried = learned(event("x")).carry(skipped + block, len(skipped))

    assert carried == (fitting, len(fitting), count)


@pytest.mark.parametrize("end", [event("", finish_reason="stop") + sse.DONE, sse.DONE, OTHERS[0]])
def test_what_came_before_the_end_of_a_stream_is_carried_without_it(end: bytes) -> None:
    alike = event("a") * 3

    assert learned(event("x")).carry(alike + end) == (alike, len(alike), 3)


@pytest.mark.parametrize(
    "chunk",
    [
        b'data: {"content":""}\n\n',
        b'data: {"content":null}\n\n',
        b'data: {"content":["x"]}\n\n',
        b'data: {"content":"x","reasoning_content":"y"}\n\n',
        b'data: {"other":"x"}\n\n',
        b'id: 1\ndata: {"content":"x"}\n\n',
        b'data: {"content":"%s"}\n\n' % (b"x" * 5000),
    ],
    ids=["empty", "null", "a list", "two", "none", "more lines", "large"],
)
def test_nothing_is_learned_from_a_chunk_that_has_not_just_one_text(chunk: bytes) -> None:
    assert Template.learn(chunk, chunk) is None


def test_what_was_carried_is_noted_as_it_stood() -> None:
    template = learned(event("x"))
    template.growing = texts = [b"before"]

    template.carry(event("a\n") + event("é"))

    assert texts == [b"before", b"a\\n", "é".encode()]


def test_a_template_overlaps_nothing() -> None:
    template = Template((b'"aa', b"a\n\n"), (b'"aa', b"a\n\n"))

    assert template.carry(b'"aa\n\n') == (b"", 0, 0)
    assert template.carry(b'"aaa\n\n') == (b'"aaa\n\n', 6, 1)


# --- learning ------------------------------------------------------------------------------------


def test_where_chunks_alternate_learning_is_given_up() -> None:
    carrier = Carrier()
    learned_from = 0
    for i in range(100):
        one = event("x", index=i % 3)
        assert carrier.carry(one) == (b"", 0, 0)
        carrier.learn(one, one)
        learned_from += carrier.is_ready

    assert learned_from < 10
    assert not carrier.is_ready


def test_where_chunks_change_now_and_then_learning_goes_on() -> None:
    carrier = Carrier()
    carried = 0
    for i in range(100):
        one = event("x", index=i // 5)
        sent, length, count = carrier.carry(one)
        assert (sent, length) == ((one, len(one)) if count else (b"", 0))
        carried += count
        if not count:
            carrier.learn(one, one)

    assert carried == 80


def test_after_a_chunk_that_needs_nothing_what_was_normalized_is_forgotten() -> None:
    carrier = Carrier()
    carrier.learn(event("x"), event("x", more=1), alike=False)
    assert carrier.carry(event("y"))[0] == event("y", more=1)

    carrier.learn(b"data: {}\n\n", b"data: {}\n\n")

    assert carrier.carry(event("y")) == (b"", 0, 0)


@EXAMPLES
@given(
    texts=TEXTS, around=st.sampled_from([(b"", b""), (b"5d\r\n", b"\r\n")]), renamed=st.booleans()
)
def test_one_event_is_carried_as_among_others_or_left_to_them(
    texts: list[str], around: tuple[bytes, bytes], renamed: bool
) -> None:
    learned_from = event("x")
    sent = learned_from.replace(b'"c"', b'"d"') if renamed else learned_from
    before, behind = around
    for text in texts:
        data = before + event(text) + behind

        found = learned(learned_from, sent).carry_one(data, len(before), len(data) - len(behind))

        carried, length, _ = learned(learned_from, sent).carry(event(text))
        assert found == carried and length == len(event(text))


@pytest.mark.parametrize(
    "odd",
    [
        event("a", model="m"),
        event("a")[:-1],
        event("a") + event("b"),
        event("a").replace(b"a", b"a\r"),
        event("a").replace(b"a", b'a"'),
        b"",
    ],
    ids=["another", "cut", "two", "line end", "quote", "nothing"],
)
def test_one_event_that_does_not_fit_is_left_to_others(odd: bytes) -> None:
    assert learned(event("x")).carry_one(odd, 0, len(odd)) is None


def test_one_event_of_arguments_that_grow_is_left_to_others() -> None:
    template = learned(event("x"))
    template.growing = []

    assert template.carry_one(event("a"), 0, len(event("a"))) is None
    assert template.growing == []
