"""The plain text of a custom tool's call, extracted from JSON arguments."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol.translation.free_text import FreeText, input_of
from tests.kit.properties import examples

EXAMPLES = examples(200)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def unwrapped(pieces: list[str]) -> str:
    text = FreeText()
    encoded = [text.feed(piece) for piece in pieces]
    return "".join([*encoded, text.end()])


def cut(text: str, places: list[int]) -> list[str]:
    marks = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in zip(marks, marks[1:], strict=False)]


PLACES = st.lists(st.integers(0, 60), max_size=20)


@EXAMPLES
@given(TEXTS, st.booleans(), st.sampled_from(["", " ", "\n\t"]), PLACES)
def test_any_text_cut_anywhere(text: str, ascii: bool, space: str, places: list[int]) -> None:
    inner = json.dumps(text, ensure_ascii=ascii)
    arguments = f'{space}{{{space}"input"{space}:{space}{inner}{space}}}{space}'
    assert unwrapped(cut(arguments, places)) == text


@EXAMPLES
@given(st.text('{}":,\\ \n"inputud83e0x' + "\U0001f600", max_size=40), PLACES)
def test_nonsense_is_the_same_however_it_is_cut(text: str, places: list[int]) -> None:
    for arguments in (text, '{"input":"' + text, '{"input":"\\' + text):
        assert unwrapped(cut(arguments, places)) == unwrapped([arguments])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ""),
        ("*** Begin Patch\n", "*** Begin Patch\n"),
        ("  bare", "  bare"),
        ("{}", ""),
        ("{", "{"),
        ('{"inp', '{"inp'),
        ('{"input": null}', '{"input": null}'),
        ('{"patch": "x"}', '{"patch": "x"}'),
        ('{"a": 1, "input": "x\\n"}', "x\n"),
        ('{"input": "x", "a": 1}', "x"),
        ('{"input": "a\nb"}', "a\nb"),
        ('{"input": "cut', "cut"),
        ('{"input": "cut\\', "cut"),
        ('{"input": "cut\\u00', "cut"),
        ('{"input": "a\\qb\\u12x"}', "a\\qb\\u12x"),
        ('{"input": "\\ud83d"}', "\ud83d"),
        ('{"input": "\\ud83d', "\ud83d"),
        ('{"input": "\\ud83d\\u0041"}', "\ud83dA"),
        ('{"input": "\\/\\b\\f\\r\\t"}', "/\b\f\r\t"),
        ('["x"]', '["x"]'),
    ],
)
def test_examples(arguments: str, expected: str) -> None:
    assert unwrapped([arguments]) == expected
    assert unwrapped(list(arguments)) == input_of(arguments) == expected
