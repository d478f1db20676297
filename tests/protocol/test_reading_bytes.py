"""The memory of a JSON text is estimated from above, before it is parsed."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol.answer_text import MOST_AS_EVENTS, AnswerSize, as_events, check_values
from qwen_wsgi.protocol.json_object import (
    JsonObjectError,
    encoded,
    loads,
    reading_bytes,
    with_members,
)

SIZE = 1_000_000


class Name(str):
    """A kind of text that no parser makes."""


def many(value: bytes) -> bytes:
    return b"[" + (value + b",") * (SIZE // (len(value) + 1)) + b"0]"


TEXTS = {
    "objects": many(b"{}"),
    "arrays": many(b"[]"),
    "nested": many(b"[[[]]]"),
    "deeply nested": many(b"[" * 900 + b"]" * 900),
    "arrays of one number": many(b"[0.1]"),
    "arrays of nine numbers": many(b"[%b]" % b",".join([b"0.1"] * 9)),
    "distinct members": b"[" + b",".join(b'{"%05x":0.5}' % i for i in range(SIZE // 13)) + b"]",
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
    "a character of each width": b'"' + b"x" * SIZE + "é汉😀".encode() + b'"',
    "each width, with an escape": b'"' + b"x" * SIZE + '\\né汉😀"'.encode(),
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
    # A long list of small lists makes the garbage collector keep a few kilobytes as well.
    assert peak + len(text) < reading_bytes(text, most=1) + 20_000


def test_short_texts_and_plain_ones_cost_little() -> None:
    assert reading_bytes(b'{"a":[1,2]}', most=1000) == 0
    assert reading_bytes(TEXTS["ascii"], most=1) < 2.001 * SIZE


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_it_is_exact_only_where_it_matters(name: str) -> None:
    """A rough estimate that is within the bound is as good, and it is an upper bound as well."""
    exact = reading_bytes(TEXTS[name], most=1)
    for most in (exact - 1, exact, exact + 1, 2 * exact, 12 * SIZE):
        estimate = reading_bytes(TEXTS[name], most=most)
        assert (estimate > most) == (exact > most)
        assert estimate >= exact or estimate == 0


def test_the_estimate_does_not_copy_a_text() -> None:
    text = TEXTS["one wide escape"]
    tracemalloc.start()
    try:
        reading_bytes(text, most=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * SIZE  # which is set aside, and not used


def test_an_answer_may_take_2_8_times_its_limit() -> None:
    check_values(TEXTS["ascii"], limit=SIZE)
    check_values(TEXTS["objects"], limit=24 * SIZE)
    with pytest.raises(AnswerTooLarge, match="take more than 22 MiB.*2.8 times QWEN_PROXY_MAX_A"):
        check_values(TEXTS["objects"], limit=8 << 20)
    check_values(TEXTS["objects"][: SIZE // 5], limit=1)  # however low the limit is
    size = AnswerSize(3 * SIZE)
    size.add_values(TEXTS["ascii"])  # takes no more than its bytes, which are counted apart
    with pytest.raises(AnswerTooLarge):
        size.add_values(TEXTS["objects"])


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
    assert encoded({"\ud83d": {}, "a": [[], [{"b": (1, "\ud83d")}], "c"], "d": {"e": 1.0}}) == (
        b'{"\\ud83d":{},"a":[[],[{"b":[1,"\\ud83d"]}],"c"],"d":{"e":1.0}}'
    )
    assert encoded("\ud83d") == b'"\\ud83d"'
    assert encoded({Name("a"): Name("b")}) == b'{"a":"b"}'


@pytest.mark.parametrize("more", [[], ["\ud83d"], [1 << 70]], ids=["msgspec", "text", "integer"])
def test_what_json_has_no_number_for_becomes_null(more: list[Any]) -> None:
    numbers = [float("nan"), float("inf"), loads(b"-1e400"), *more]
    assert json.loads(encoded({"a": numbers})) == {"a": [None, None, None, *more]}


def test_numbers_mean_what_they_meant() -> None:
    numbers = [1.0, 1, -0.0, 1e16, 1e22, 5e-324, 1e-7, 0.1, 1.7976931348623157e308]
    numbers += [1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64, -(1 << 64)]
    found = json.loads(encoded(numbers))
    assert (found, list(map(repr, found))) == (numbers, list(map(repr, numbers)))


def test_a_deep_value_is_rendered_however_it_is_rendered() -> None:
    for leaf in ("a", "\ud83d", 1 << 70):
        value: Any = leaf
        for _ in range(300):
            value = [{"a": value}]
        assert json.loads(encoded(value)) == value


def test_what_msgspec_does_not_read_has_a_bound_of_its_own() -> None:
    text = json.dumps(["\ud83d"]).encode()
    assert loads(text, most_slowly=len(text)) == ["\ud83d"]
    with pytest.raises(msgspec.DecodeError):
        loads(text, most_slowly=len(text) - 1)
    assert loads(b"[1]", most_slowly=0) == [1]


def test_an_answer_in_one_piece_may_become_so_many_events() -> None:
    assert as_events([{"a": 1}, {}]) == [b'data: {"a":1}\n\n', b"data: {}\n\n"]
    with pytest.raises(AnswerTooLarge, match="4 MiB"):
        as_events(["x" * (MOST_AS_EVENTS // 2)] * 2)
