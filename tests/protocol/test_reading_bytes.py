"""The memory of a JSON text is estimated from above, before it is parsed."""

from __future__ import annotations

import tracemalloc

import pytest

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol.answer_text import MOST_AS_EVENTS, as_events
from qwen_wsgi.protocol.json_object import (
    JsonObjectError,
    encoded,
    loads,
    reading_bytes,
    with_members,
)

SIZE = 1_000_000


def many(value: bytes) -> bytes:
    return b"[" + (value + b",") * (SIZE // (len(value) + 1)) + b"0]"


TEXTS = {
    "objects": many(b"{}"),
    "arrays": many(b"[]"),
    "nested": many(b"[[[]]]"),
    "one member": many(b'{"a":1}'),
    "members": many(b'{"a":1,"b":2}'),
    "numbers": many(b"0.1"),
    "integers": many(b"999"),
    "texts": many(b'"ab"'),
    "keys": b"{" + b",".join(b'"%x":0' % i for i in range(SIZE // 10)) + b"}",
    "ascii": b'"' + b"x" * SIZE + b'"',
    "escapes": b'"' + b"\\n" * (SIZE // 2) + b'"',
    "chinese": b'"' + "汉".encode() * (SIZE // 3) + b'"',
    "one wide character": b'"' + b"x" * SIZE + "汉😀".encode() + b'"',
    "one wide escape": b'"' + b"x" * SIZE + b'\\u6c49\\uD83D\\uDE00"',
}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_estimate_is_above_what_python_allocates(name: str) -> None:
    text = TEXTS[name]
    tracemalloc.start()
    try:
        value = loads(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert value
    # Lists grow in steps, so one of a given size may be a little larger than the rule.
    assert peak + len(text) < 1.1 * reading_bytes(text, most=1)


def test_short_texts_and_plain_ones_cost_little() -> None:
    assert reading_bytes(b'{"a":[1,2]}', most=1000) == 0
    assert reading_bytes(TEXTS["ascii"], most=1) < 2.001 * SIZE


def test_members_are_replaced_and_the_others_keep_their_text() -> None:
    text = b'{"a": 1.0, "model": "x", "b": 1e2}'

    assert with_members(text, {"model": "y"}) == b'{"a":1.0,"model":"y","b":1e2}'
    for broken in (b"[1]", b'{"a":', b'{"a":NaN}'):
        with pytest.raises(JsonObjectError):
            with_members(broken, {})


def test_what_the_fast_encoder_refuses_is_rendered_all_the_same() -> None:
    assert encoded({"a": "é", "b": [1.5, None]}) == '{"a":"é","b":[1.5,null]}'.encode()
    assert encoded(["\ud83d"]) == b'["\\ud83d"]'
    assert encoded([1 << 70]) == b"[%d]" % (1 << 70)


def test_an_answer_in_one_piece_may_become_so_many_events() -> None:
    assert as_events([{"a": 1}, {}]) == [b'data: {"a":1}\n\n', b"data: {}\n\n"]
    with pytest.raises(AnswerTooLarge, match="6 MiB"):
        as_events(["x" * (MOST_AS_EVENTS // 2)] * 2)
