"""JSON with comments."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.credentials.files.jsonc import loads, strip_comments

#: Text in which everything that could confuse the stripper is likely.
TRICKY = st.text(st.sampled_from('/*"\\ \n\r\taé{}:,'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TRICKY, inner, max_size=3),
    max_leaves=8,
)
COMMENTS = st.one_of(
    TRICKY.map(lambda text: "//" + text.replace("\n", "") + "\n"),
    TRICKY.map(lambda text: "/*" + text.replace("/", "") + " */"),
    st.sampled_from(["", " ", "\n"]),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1} // end', {"a": 1}),
        ('{"a": /* one */ 1}', {"a": 1}),
        ('{"url": "https://host/v1"}', {"url": "https://host/v1"}),
        ('{"glob": "src/**/*.py /* */"}', {"glob": "src/**/*.py /* */"}),
        ('{"quote": "\\" // no comment"}', {"quote": '" // no comment'}),
        ('{"slash": "\\\\"} // "', {"slash": "\\"}),
        ('// "quoted" in a comment\n[]', []),
        ("/* // */ [1, /* 2, */ 3]", [1, 3]),
        ("[] /* never closed", []),
        ("[1]\r\n// windows\r\n", [1]),
    ],
)
def test_comments_go_and_strings_stay(text: str, expected: Any) -> None:
    assert loads(text, comments=True) == expected


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1,}', '{"a": "//}', "{'a': 1}", "[NaN]", "[Infinity]", "[" * 100_000]
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text, comments=True)


def test_an_error_names_the_place_in_the_original_and_quotes_nothing() -> None:
    with pytest.raises(ValueError) as caught:
        loads('{\n  // c\n  "key": "sk-secret" oops\n}', comments=True)

    assert "line 3 column 22" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_comments_are_refused_where_they_are_not_allowed() -> None:
    with pytest.raises(ValueError):
        loads("[] // no", comments=False)


@given(VALUES, st.data())
def test_comments_between_tokens_change_no_value(value: Any, data: st.DataObject) -> None:
    pieces = []
    for token in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        pieces += [data.draw(COMMENTS), token]
    text = "".join([*pieces, data.draw(COMMENTS)])

    assert loads(text, comments=True) == value


@given(TRICKY)
def test_stripping_keeps_every_position_and_is_complete(text: str) -> None:
    once = strip_comments(text)

    assert len(once) == len(text)
    assert [i for i, c in enumerate(once) if c == "\n"] == [
        i for i, c in enumerate(text) if c == "\n"
    ]
    assert strip_comments(once) == once
