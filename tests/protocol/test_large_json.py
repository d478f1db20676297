"""A large object is read once, and its text is known as well as after several looks at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol import large_json
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError, compact, compact_start
from tests.kit.json_texts import NAMES, SPACE, VALUES, object_texts
from tests.kit.properties import examples

EXAMPLES = examples(200)

DECIDING = ("model", "messages", "stream", "a", "b")
RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])

#: Texts and members that look like the end of the messages, and what comes behind them.
CONFUSING = st.sampled_from(
    [
        'x","model":"evil"',
        '\\","model":"evil"}',
        ' , "model" : 1}',
        "model",
        '"',
        "\\",
        ', "messages"',
        '}],"stream":true}',
    ]
)
INNER = st.recursive(
    CONFUSING | st.sampled_from([None, 1, ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "messages", "stream", "text"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
MEMBERS = st.lists(
    st.tuples(st.sampled_from(["model", "messages", "stream", "tools", "é", 'm"']), INNER | VALUES),
    max_size=6,
)


@pytest.fixture(autouse=True, scope="module")
def small_ones_are_large() -> Iterator[None]:
    """Every object is treated as a large one, and its ends are all of it."""
    with mock.patch.multiple(large_json, LARGE_BYTES=0, _AROUND_BYTES=0, _END_PART=1, _LONG_TEXT=0):
        yield


def read_otherwise(text: bytes) -> JsonObject:
    """The object as one that is not large."""
    with mock.patch.object(large_json, "LARGE_BYTES", 1 << 30):
        return JsonObject(text)


def texts(of: Any) -> list[tuple[str, bytes]]:
    return [(name, bytes(text)) for name, text in of.items()]


def rendered(members: list[tuple[str, Any]], space: str, ascii_only: bool) -> bytes:
    each = (
        f"{json.dumps(name, ensure_ascii=ascii_only)}{space}:{space}"
        f"{json.dumps(value, ensure_ascii=ascii_only)}{space}"
        for name, value in members
    )
    return f"{space}{{{space}{f',{space}'.join(each)}}}{space}".encode()


@EXAMPLES
@given(members=MEMBERS, space=SPACE, ascii_only=st.booleans())
def test_the_texts_of_members_are_those_of_a_whole_look(
    members: list[tuple[str, Any]], space: str, ascii_only: bool
) -> None:
    source = rendered(list(dict(members).items()), space, ascii_only)

    found = large_json.member_texts(source, json.loads(source))

    assert texts(found) == texts(RAW.decode(source))


@EXAMPLES
@given(
    made=object_texts(),
    changes=st.dictionaries(NAMES, VALUES, max_size=3),
    drop=st.sets(NAMES, max_size=2),
)
def test_a_large_object_is_read_and_rendered_as_any_other(
    made: tuple[str, Any], changes: dict[str, Any], drop: set[str]
) -> None:
    """Names may stand twice, and be written with escapes."""
    source = made[0].encode()

    large, other = JsonObject(source), read_otherwise(source)

    assert large.names() == other.names()
    assert [large[name] for name in large.names()] == [other[name] for name in other.names()]
    assert large.repeated(DECIDING) == other.repeated(DECIDING)
    assert large.render(changes, drop=drop) == other.render(changes, drop=drop)


@EXAMPLES
@given(made=object_texts(), place=st.floats(0, 1), junk=st.sampled_from(list('{}[]:,"\\ 0a\x00é')))
def test_a_damaged_text_is_refused_in_the_same_words(
    made: tuple[str, Any], place: float, junk: str
) -> None:
    at = int(place * len(made[0]))
    damaged = (made[0][:at] + junk + made[0][at:]).encode()
    found: list[Any] = []
    for read in (JsonObject, read_otherwise):
        try:
            found.append(read(damaged).names())
        except JsonObjectError as error:
            found.append(str(error))

    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ('{"a":1,"model":2,"a":3}', "a"),
        ('{"model":1,"m\\u006fdel":2}', "model"),
        ('{"x":1,"x":2}', None),
        ('{"b":1,"model":2,"model":3,"b":4}', "model"),
        ('{"a":"\\ud83d","a":1}', "a"),
        ('{"model":{"model":{"model":1}}}', None),
    ],
)
def test_what_stands_twice_is_seen(text: str, repeated: str | None) -> None:
    body = JsonObject(text.encode())

    assert body.repeated(DECIDING) == repeated == read_otherwise(text.encode()).repeated(DECIDING)
    assert json.loads(body.render({"new": 1})) == {**json.loads(text), "new": 1}


def test_of_very_many_names_none_is_an_object_of_its_own() -> None:
    members = ",".join(f'"n{index}":{index}' for index in range(20_000))
    body = JsonObject(f'{{"model":1,{members},"model":2}}'.encode())

    assert large_json.read(body.source)[1] is None
    assert (body["n19999"], body["model"], len(body.names())) == (19_999, 2, 20_001)
    assert body.repeated(DECIDING) == "model"
    assert body.render(drop=["model"]) == f"{{{members}}}".encode()


BIG = {"role": "user", "content": [{"type": "text", "text": 'a "b", "model": \\ ' * 8000}]}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("place", range(4))
def test_of_a_megabyte_only_the_ends_are_looked_at(
    place: int, indent: int | None, separators: tuple[str, str]
) -> None:
    others = [("model", "m"), ("stream", True), ("temperature", 1.5)]
    members = dict([*others[:place], ("messages", [BIG]), *others[place:]])
    source = json.dumps(members, indent=indent, separators=separators).encode()

    with (
        mock.patch.multiple(large_json, _AROUND_BYTES=64 * 1024, _END_PART=16),
        mock.patch.object(large_json, "_RAW", wraps=RAW) as reader,
    ):
        found = large_json.member_texts(source, members)

    assert texts(found) == texts(RAW.decode(source))
    assert sum(len(call.args[0]) for call in reader.decode.call_args_list) < 200


def test_what_is_large_at_neither_end_is_looked_at_as_a_whole() -> None:
    members = {"messages": [BIG], "model": "m", "input": [BIG]}
    source = json.dumps(members).encode()

    with mock.patch.object(large_json, "_END_PART", 16):
        assert texts(large_json.member_texts(source, members)) == texts(RAW.decode(source))


def counted(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(counted, value.values()))
    return sum(map(counted, value)) if isinstance(value, list) else 0


@EXAMPLES
@given(value=VALUES, most=st.integers(1, 12))
def test_members_are_counted_up_to_a_number(value: Any, most: int) -> None:
    assert large_json.members_in(value, most) == min(counted(value), most)


@pytest.mark.parametrize("members", [1, 5000, 20_000])
def test_a_mark_that_is_there_may_be_there(members: int) -> None:
    others = {f"m{index}": 0 for index in range(members)}

    assert JsonObject(json.dumps({"a": "x mark y", **others}).encode()).may_hold(b"mark")
    dense = JsonObject(json.dumps(others).encode())
    assert not dense.may_hold(b"mark")
    sparse = JsonObject(json.dumps({**others, "a": "x" * 6_000_000}).encode())
    assert sparse.may_hold(b"mark") is (members < 5800)


@EXAMPLES
@given(value=VALUES, most=st.integers(1, 40))
def test_the_start_of_a_rendered_value_needs_no_more_than_it(value: Any, most: int) -> None:
    assert compact_start(value, most) == compact(value)[:most]


def test_of_a_long_text_only_the_start_is_rendered() -> None:
    value = [{"type": "image_url", "image_url": {"url": "data:" + "A" * 1_000_000}}]

    with mock.patch("qwen_wsgi.protocol.json_object.compact", wraps=compact) as rendering:
        assert compact_start(value, 100) == compact(value)[:100]

    assert len(str(rendering.call_args_list[0].args[0])) < 200
