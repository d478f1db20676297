"""Snippets say what was sent: the shell and Python read them back."""

from __future__ import annotations

import ast
import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.console import snippets
from qwen_wsgi.console.snippets import DIALECTS, KEY, PICTURE

ORIGIN = "https://qwen.lan"
#: What a page can send: no lone surrogates.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)
BODY = st.fixed_dictionaries(
    {"model": TEXT, "stream": st.booleans()},
    optional={"messages": st.lists(st.dictionaries(TEXT, TEXT, max_size=2)), "odd_member": TEXT},
)


@given(st.sampled_from(sorted(DIALECTS)), BODY)
def test_a_shell_reads_the_body_back(name: str, body: dict[str, Any]) -> None:
    words = shlex.split(snippets.curl(name, body, ORIGIN))
    assert words[:3] == ["curl", "-N", ORIGIN + DIALECTS[name].path]
    assert json.loads(words[words.index("-d") + 1]) == body
    assert any(f"${KEY}" in word for word in words)


@given(st.sampled_from(sorted(DIALECTS)), BODY)
def test_python_reads_the_body_back(name: str, body: dict[str, Any]) -> None:
    tree = ast.parse(snippets.python(name, body, ORIGIN))
    (call,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == DIALECTS[name].call
    ]
    read = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    extra = read.pop("extra_body", {})
    assert {**read, **extra} == body
    assert set(read) <= set(DIALECTS[name].known)


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_no_secret_is_in_a_snippet(name: str) -> None:
    body = {"model": "m", "prompt": "p"}
    assert f"${KEY}" in snippets.curl(name, body, ORIGIN)
    assert f'os.environ["{KEY}"]' in snippets.python(name, body, ORIGIN)


def test_the_bytes_of_pictures_are_left_out() -> None:
    long = "A" * 400
    body = {
        "messages": [
            {"image_url": {"url": f"data:image/png;base64,{long}"}},
            {"source": {"type": "base64", "media_type": "image/png", "data": long}},
        ]
    }
    told = json.dumps(snippets.without_pictures(body))
    assert told.count(PICTURE) == 2
    assert long not in told
    assert "data:image/png;base64," in told
