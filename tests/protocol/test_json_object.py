"""A client's JSON object keeps its exact bytes, except for changed members."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_wsgi.protocol.json_object import (
    LONG_BYTES,
    JsonObject,
    JsonObjectError,
    encoded,
    loads,
    render_slowly,
)
from tests.kit.json_texts import NAMES, VALUES, object_texts
from tests.kit.properties import examples

EXAMPLES = examples(150)


@EXAMPLES
@given(
    made=object_texts(),
    changes=st.dictionaries(NAMES, VALUES, max_size=3),
    drop=st.sets(NAMES, max_size=2),
)
@example(
    made=('{"a":1.0,"a":1e5}', [('"a"', "1.0", 1.0), ('"a"', "1e5", 1e5)]), changes={}, drop=set()
)
def test_rendering_changes_what_is_named_and_keeps_the_text_of_the_rest(
    made: tuple[str, list[tuple[str, str, Any]]], changes: dict[str, Any], drop: set[str]
) -> None:
    text, members = made
    original = json.loads(text)
    drop -= set(changes)

    rendered = JsonObject(text.encode()).render(changes, drop=drop)

    expected = {name: value for name, value in original.items() if name not in drop} | changes
    assert json.loads(rendered) == expected
    last_texts = {json.loads(key): value for key, value, _ in members}
    for name, value_text in last_texts.items():
        if name in expected and name not in changes:
            assert value_text in rendered.decode()


@EXAMPLES
@given(made=object_texts())
def test_values_are_those_of_the_standard_parser(made: tuple[str, Any]) -> None:
    text, _ = made
    expected = json.loads(text)

    found = JsonObject(text.encode())

    assert {name: found[name] for name in found.names()} == expected
    assert all(name in found for name in expected)
    assert found.render() == text.encode()
    assert found.render({}, drop=["no such member \x00"]) == text.encode()


@pytest.mark.parametrize(
    "member",
    [
        '"temperature":1.0',
        '"temperature":0',
        '"temperature":-0.0',
        '"temperature":1e5',
        '"temperature":1E+05',
        '"big":123456789012345678901234567890',
        '"precise":0.1000000000000000055511151231257827',
        '"text":"\\u00e9\\ud83d\\ude00 \\/ \\b\\f\\n\\r\\t\\"\\\\"',
        '"text":"é😀 中文"',
        '"half":"\\ud83d"',
        '"nested":{"a":[1.0,{"b":null, "b":true}],"a":[]}',
        '"spaced":[ 1 , 2 ]',
        '"messages":[{"role":"assistant","content":"","reasoning_content":"hm\\n"}]',
        '"image":"data:image/png;base64,iVBORw0KGgo="',
    ],
)
def test_an_untouched_member_survives_to_the_letter_beside_a_changed_one(member: str) -> None:
    body = f'{{"model":"x",{member},"stream":false}}'.encode()

    rendered = JsonObject(body).render({"model": "y", "added": 1}, drop=["stream"])

    assert rendered == f'{{"model":"y",{member},"added":1}}'.encode()


def test_a_change_of_a_member_with_an_escaped_name_finds_it() -> None:
    body = JsonObject(b'{"\\u006dodel": "x"}')

    assert body.get("model") == "x"
    assert json.loads(body.render({"model": "y"})) == {"model": "y"}


def test_of_repeated_names_the_last_counts_and_only_it_goes_on() -> None:
    body = JsonObject(b'{"model":"a","n":1.0,"model":"b"}')

    assert body["model"] == "b"
    rendered = body.render({"x": 1})
    assert json.loads(rendered) == {"n": 1.0, "model": "b", "x": 1}
    assert rendered.count(b"model") == 1
    assert json.loads(body.render({"model": "c"})) == {"n": 1.0, "model": "c"}
    assert json.loads(body.render(drop=["model"])) == {"n": 1.0}


def test_escapes_in_a_name_and_space_around_it_are_no_part_of_the_value() -> None:
    rendered = JsonObject(b'{"\\u0074ext" : "a\\u0062" , "x":1}').render({"x": 2})

    assert rendered == b'{"text":"a\\u0062","x":2}'


@pytest.mark.parametrize("text", ['{"a":"\\ud83d","b":1.0}', '{"a":"\\ud83d \\ude00","b":1.0}'])
def test_halves_of_surrogate_pairs_are_taken(text: str) -> None:
    """Clients that cut texts in JavaScript send them, escaped."""
    assert loads(text.encode()) == json.loads(text)
    body = JsonObject(text.encode())
    assert body["a"] == json.loads(text)["a"]
    assert body.render({"c": 0}) == text.encode()[:-1] + b',"c":0}'


@EXAMPLES
@given(made=object_texts())
def test_any_value_is_that_of_the_standard_parser(made: tuple[str, Any]) -> None:
    assert loads(made[0].encode()) == json.loads(made[0])


@pytest.mark.parametrize("data", [b"", b"{", b"[1,]", b"NaN", b'"\xff"', b"1 2"])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        loads(data)


def test_a_member_that_is_not_there_has_the_default() -> None:
    body = JsonObject(b'{"null":null}')

    assert body.get("null", 5) is None
    assert body.get("none") is None
    assert body.get("none", 5) == 5
    assert "none" not in body
    with pytest.raises(KeyError):
        body["none"]


def test_a_changed_text_is_written_as_it_is_read() -> None:
    rendered = JsonObject(b"{}").render({"model": 'é"\\😀\n'})

    assert rendered == '{"model":"é\\"\\\\😀\\n"}'.encode()


def test_a_change_that_holds_half_a_surrogate_pair_is_still_written_as_json() -> None:
    """`"\\ud83d"` is legal JSON, so a client's own value may come back as a change."""
    body = JsonObject(b'{"input":["\\ud83d"]}')

    rendered = body.render({"input": body["input"]})

    assert json.loads(rendered) == {"input": ["\ud83d"]}


INVALID = [
    "",
    " ",
    "{",
    "}",
    "{}}",
    "{} x",
    "{},",
    '{"a"}',
    '{"a":}',
    '{"a":1,}',
    "{,}",
    '{"a" 1}',
    '{"a":1 "b":2}',
    '{"a":1;"b":2}',
    '{"a":1,,"b":2}',
    "{'a':1}",
    "{a:1}",
    "{1:1}",
    '{"a":01}',
    '{"a":+1}',
    '{"a":.5}',
    '{"a":1.}',
    '{"a":1e}',
    '{"a":0x1}',
    '{"a":tru}',
    '{"a":True}',
    '{"a":None}',
    '{"a":undefined}',
    '{"a":"x}',
    '{"a":"\\x"}',
    '{"a":"\\u12"}',
    '{"a":"tab\there"}',
    '{"a":"line\nbreak"}',
    '{"a":"nul\x00"}',
    '{"a\n":1}',
    '{"a":[1,]}',
    '{"a":[1}',
    '{"a":{"b":1}',
    '{"a":1}{"b":2}',
    '{"a":1}\x00',
    '{"a":1} // comment',
    '/* comment */ {"a":1}',
    '{"a":1\u00a0}',
    '\u00a0{"a":1}',
    '{"a":1\x0b}',
    "nonsense",
    '{"a":' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("text", INVALID, ids=lambda text: repr(text[:24]))
def test_what_the_standard_parser_refuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        json.loads(text)

    with pytest.raises(JsonObjectError):
        JsonObject(text.encode())


@EXAMPLES
@given(
    made=object_texts(),
    place=st.floats(0, 1),
    junk=st.sampled_from(list('{}[]:,"\\ 0aeE+-.\t\n\x00\u00e9')) | st.characters(codec="utf-8"),
    removed=st.integers(0, 2),
)
def test_a_damaged_text_is_taken_or_refused_exactly_as_by_the_standard_parser(
    made: tuple[str, Any], place: float, junk: str, removed: int
) -> None:
    text, _ = made
    at = int(place * len(text))
    damaged = text[:at] + junk + text[at + removed :]
    try:
        expected = json.loads(damaged)
    except ValueError:
        expected = None
    if not isinstance(expected, dict):
        with pytest.raises(JsonObjectError):
            JsonObject(damaged.encode())
        return

    found = JsonObject(damaged.encode())

    assert {name: found[name] for name in found.names()} == expected


@pytest.mark.parametrize("text", ["[]", "[1]", '"x"', "1", "null", "true", " [ ] "])
def test_json_that_is_no_object_is_refused_in_those_words(text: str) -> None:
    with pytest.raises(JsonObjectError, match="not a JSON object"):
        JsonObject(text.encode())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("shape", ['{{"a":{}}}', '{{"a":[{{"b":{}}}]}}'])
def test_python_numbers_that_are_no_json_are_refused(shape: str, number: str) -> None:
    with pytest.raises(JsonObjectError, match="not JSON"):
        JsonObject(shape.format(number).encode())


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_text_that_is_nested_too_deep_is_refused_and_does_no_harm(opening: str) -> None:
    with pytest.raises(JsonObjectError, match="nested too deep"):
        JsonObject(b'{"a":' + opening.encode() * 100_000)


@pytest.mark.parametrize(
    "body",
    [b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc3', b"\xfe\xff\x00{\x00}", b"\x80"],
)
def test_bytes_that_are_not_utf8_are_refused(body: bytes) -> None:
    with pytest.raises(JsonObjectError, match="not UTF-8"):
        JsonObject(body)


def test_a_byte_order_mark_is_tolerated() -> None:
    body = JsonObject(b'\xef\xbb\xbf{"a":1.0}')

    assert body["a"] == 1.0
    assert body.render({"b": 2}) == b'{"a":1.0,"b":2}'


def test_a_byte_order_mark_never_goes_upstream() -> None:
    """RFC 8259 §8.1: a mark must not be sent, and parsers may refuse it."""
    assert JsonObject(b'\xef\xbb\xbf{"a":1.0}').render() == b'{"a":1.0}'


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"SECRET"',
        '{"a":SECRET}',
        '{"SECRET":1,}',
        '{"a":"SECRET\\q"}',
        '{"a":"SECRET\n"}',
        'SECRET{"a":1}',
        '["SECRET"]',
        '"SECRET"',
        '{"SECRET" 1}',
        '{"a":1} SECRET',
        '{"a":[NaN,"SECRET"]}',
    ],
)
def test_messages_never_quote_the_content(text: str) -> None:
    with pytest.raises(JsonObjectError) as caught:
        JsonObject(text.encode())

    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_messages_tell_the_place() -> None:
    with pytest.raises(JsonObjectError, match="at character 6"):
        JsonObject(b'{"a": x}')
    with pytest.raises(JsonObjectError, match="not UTF-8 at byte 6"):
        JsonObject(b'{"a":"\xff"}')


def test_a_megabyte_of_members_is_read_in_linear_time() -> None:
    """A quadratic walk would take minutes."""
    body = "{" + ",".join(f'"name{i}":{i}.0' for i in range(60_000)) + "}"

    found = JsonObject(body.encode())

    assert len(found.names()) == 60_000
    assert found.render({"name0": 1}).count(b",") == 59_999


@pytest.mark.parametrize(
    ("text", "is_long"),
    [
        (b'{"a":"' + b"x" * (LONG_BYTES - 8) + b'"}', True),
        (b'{"a":"' + b"x" * (LONG_BYTES - 9) + b'"}', False),
        (b'{"a":[' + b",".join([b'{"":0}'] * 9_999) + b"]}", True),
        (b'{"a":[' + b",".join([b'{"":0}'] * 9_998) + b"]}", False),
    ],
    ids=["bytes", "one byte less", "members", "one member less"],
)
def test_what_takes_long_to_work_on(text: bytes, is_long: bool) -> None:
    assert JsonObject(text).is_long is is_long


def test_what_takes_long_still_does_after_a_change() -> None:
    body = JsonObject(b'{"a":[' + b",".join([b'{"":0}'] * 10_000) + b'],"b":1}')

    assert JsonObject(body.render({"c": 2}, drop=("b",))).is_long


LONG_TEXTS = st.builds(
    lambda text, count: text * count,
    st.text(st.characters(codec=None), min_size=1, max_size=3),
    st.sampled_from([1, 131_072, 150_000, 300_000]),
)


@examples(60)
@given(st.lists(VALUES | st.dictionaries(NAMES, st.lists(LONG_TEXTS | VALUES, max_size=2))))
@example([{"content": [{"text": "\ud800" + "x" * 200_000 + "\U0001f600" * 100_000}]}])
@example([10**30, {"a": [10**30, "x" * 200_000]}, {}, [], ()])
def test_what_is_rendered_slowly_is_the_same(value: list[Any]) -> None:
    quick, slow = encoded(value), render_slowly(value)

    assert loads(slow) == loads(quick) == json.loads(json.dumps(value))
