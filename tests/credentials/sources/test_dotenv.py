"""The notation of .env files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.credentials.sources.dotenv import parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KEY=value", {"KEY": "value"}),
        ("KEY = value  ", {"KEY": "value"}),
        ("export KEY=value", {"KEY": "value"}),
        ("KEY: value", {"KEY": "value"}),
        ("KEY:value", {}),
        ("KEY=", {"KEY": ""}),
        ("KEY=\nNEXT=1", {"KEY": "", "NEXT": "1"}),
        ("KEY", {}),
        ("# KEY=value", {}),
        ("KEY=value # comment", {"KEY": "value"}),
        ("KEY=val#ue", {"KEY": "val"}),
        ('KEY="val#ue" # comment', {"KEY": "val#ue"}),
        ("KEY='val#ue'", {"KEY": "val#ue"}),
        ('KEY=`it\'s "fine"`', {"KEY": 'it\'s "fine"'}),
        ('KEY=""', {"KEY": ""}),
        ('KEY="a\\nb\\r"', {"KEY": "a\nb\r"}),
        ("KEY='a\\nb'", {"KEY": "a\\nb"}),
        ('KEY="two\nlines"\nNEXT=1', {"KEY": "two\nlines", "NEXT": "1"}),
        ('KEY="never closed\nNEXT=1', {"KEY": '"never closed', "NEXT": "1"}),
        ("KEY=' spaces '", {"KEY": " spaces "}),
        ("KEY=a b c", {"KEY": "a b c"}),
        ("KEY=a=b==", {"KEY": "a=b=="}),
        ("KEY=one\nKEY=two", {"KEY": "two"}),
        ("A=1\r\nB=2\rC=3", {"A": "1", "B": "2", "C": "3"}),
        ("MY.KEY-1=x", {"MY.KEY-1": "x"}),
        ("KEY=$OTHER", {"KEY": "$OTHER"}),
        ("", {}),
        ("<html>not = an env file</html>", {}),
    ],
)
def test_assignments(text: str, expected: dict[str, str]) -> None:
    assert parse(text) == expected


@given(st.text())
def test_nothing_makes_it_fail(text: str) -> None:
    parse(text)


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="'\r"))


@given(st.dictionaries(NAMES, VALUES, max_size=5), st.booleans())
def test_single_quotes_carry_any_value(values: dict[str, str], exported: bool) -> None:
    # A backslash before the closing quote would keep the string open.
    values = {name: value for name, value in values.items() if not value.endswith("\\")}
    prefix = "export " if exported else ""
    text = "\n".join(f"{prefix}{name}='{value}' # end" for name, value in values.items())

    assert parse(text) == values
