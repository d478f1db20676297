"""JSON is edited as text: what is set is there, the rest stays, and it can be taken back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.clients.files.json_text import apply, take_back
from qwen_wsgi.clients.files.texts import Refused
from qwen_wsgi.credentials.files import jsonc
from tests.kit.properties import examples

OURS = {"model": "qwen/m", "provider": {"qwen": {"npm": "x", "models": {"m": {"limit": 1}}}}}

NAMES = st.sampled_from(["model", "provider", "qwen", "npm", "models", "m", "a", "é"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
SPACE = st.sampled_from(["", " ", "\n", "\n    ", ' // a "comment"\n', " /* { */ ", "\r\n"])


@st.composite
def texts(draw: Any, value: Any) -> Any:
    """A value as JSON that a person has laid out."""
    if isinstance(value, dict):
        parts = [
            f"{draw(SPACE)}{json.dumps(name)}{draw(SPACE)}:{draw(SPACE)}{draw(texts(inner))}"
            for name, inner in value.items()
        ]
        comma = "," if parts and draw(st.booleans()) else ""
        return "{" + ",".join(parts) + comma + draw(SPACE) + "}"
    if isinstance(value, list):
        return "[" + ",".join(draw(SPACE) + draw(texts(inner)) for inner in value) + "]"
    return json.dumps(value)


def merged(given: Any, ours: Any) -> Any:
    if not (isinstance(given, dict) and isinstance(ours, dict) and ours):
        return ours
    return {**given, **{name: merged(given.get(name), ours[name]) for name in ours}}


def read(text: str) -> Any:
    """As a client reads it, but with no regard to commas at the end."""
    bare = jsonc.strip_comments(text)
    while True:
        for closing in "}]":
            position = bare.rfind(",", 0)
            while position >= 0:
                rest = bare[position + 1 :].lstrip()
                if rest.startswith(closing) and not inside_string(bare, position):
                    bare = bare[:position] + " " + bare[position + 1 :]
                position = bare.rfind(",", 0, position) if position else -1
        return json.loads(bare)


def inside_string(text: str, position: int) -> bool:
    quoted = escaped = False
    for mark in text[:position]:
        if mark == '"' and not escaped:
            quoted = not quoted
        escaped = quoted and mark == "\\" and not escaped
    return quoted


@given(st.data(), OBJECTS, OBJECTS)
@examples(60)
def test_what_is_set_is_there_and_what_is_taken_back_is_gone(
    data: st.DataObject, value: dict[str, Any], ours: dict[str, Any]
) -> None:
    text = data.draw(texts(value)) + data.draw(SPACE)

    applied = apply(text, ours)
    back = take_back(applied.text, applied.note)

    assert read(applied.text) == (merged(value, ours) if ours else value)
    assert read(back.text or "{}") == value
    assert back.kept == ()


@given(st.data(), OBJECTS, OBJECTS, OBJECTS)
@examples(40)
def test_members_that_were_added_since_stay(
    data: st.DataObject, value: dict[str, Any], ours: dict[str, Any], more: dict[str, Any]
) -> None:
    applied = apply(data.draw(texts(value)), ours)
    added = {f"new-{name}": each for name, each in more.items()}

    back = take_back(apply(applied.text, added).text, applied.note)

    assert read(back.text or "{}") == {**value, **added}


@pytest.mark.parametrize(
    "text",
    [
        '{\n  "a": 1\n}\n',
        '{\n\t"a": 1, // why\n\t"provider": {\n\t\t"x": {}\n\t},\n}\n',
        '{"a": 1}',
        '{\r\n  "a": [1, 2],\r\n  "model": "mine" /* this */\r\n}\r\n',
        '// head\n{ "provider": {"qwen": {"npm": "y", "z": 1}} }\n',
    ],
)
def test_the_text_comes_back_to_the_last_character(text: str) -> None:
    applied = apply(text, OURS)

    assert take_back(applied.text, applied.note).text == text


def test_a_new_file_is_laid_out_like_the_recipe_and_goes_away() -> None:
    applied = apply("", OURS)

    assert applied.text == json.dumps(OURS, indent=2) + "\n"
    assert take_back(applied.text, applied.note).text == ""


def test_comments_stay_on_their_lines() -> None:
    text = '{\n  "a": 1 // of a\n}\n'

    assert apply(text, {"b": 2}).text == '{\n  "a": 1, // of a\n  "b": 2\n}\n'


def test_what_somebody_has_changed_since_stays_and_is_told() -> None:
    applied = apply('{"model": "mine"}', OURS)
    text = applied.text.replace("qwen/m", "other")

    back = take_back(text, applied.note)

    assert json.loads(back.text) == {"model": "other"}
    assert back.kept == ("model was changed since, and stays",)


def test_an_object_in_which_somebody_has_put_something_stays() -> None:
    applied = apply("{}", OURS)
    text = applied.text.replace('"npm": "x"', '"npm": "x", "mine": 1')

    assert json.loads(take_back(text, applied.note).text) == {"provider": {"qwen": {"mine": 1}}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no key at line 1 column 2"),
        ('{"a": 1', "no comma"),
        ('{"a": }', "no value at line 1 column 7"),
        ('{"a" 1}', "no colon"),
        ('{"a": 1, "a": 2}', "second time"),
        ('{"a": NaN}', "no value"),
        ("[1]", "not an object"),
        ("{} {}", "behind the end"),
        ('{"a":' * 200, "too deeply"),
        ("\ufeff{}", "no value"),
        ("{ /* open", "no key"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        apply(text, OURS)


def test_a_refusal_quotes_nothing() -> None:
    with pytest.raises(Refused) as refused:
        apply('{"apiKey": sk-secret}', OURS)

    assert "secret" not in str(refused.value)
