"""YAML gets our keys or our item between marks, is still YAML, and comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.clients.files.texts import BEGIN, END, Refused
from qwen_wsgi.clients.files.yaml_text import apply_item, apply_keys, take_back

KEYS = (("model", ['model: "ours"']), ("weak-model", ['weak-model: "w"']))
ITEM = ('- name: "ours"', "  roles: [chat]", "  limits:", "    a: 1")
AROUND = (("name", "name: p"), ("schema", "schema: v1"))
OURS = {"name": "ours", "roles": ["chat"], "limits": {"a": 1}}

FILES = {
    "new": "",
    "comment": "# mine\n",
    "keys": "model: gpt # good\nother: [1,\n  2]\n",
    "start": "---\n# c\nread: yes\n",
    "block": "text: |\n  model: x\n\n  y\nz: 1\n",
    "crlf": "model: gpt\r\nz: 1\r\n",
    "quoted": "\"model\": 'x'\n",
    "list": "read:\n- a\n- b\n",
    "nested": "a:\n  model: x\n  models:\n    - name: ours\n",
    "no line feed": "z: 1",
}
LISTS = {
    "indented": "models:\n  - name: a\n    x: 1\n  - name: b\n",
    "flush": "name: mine\nmodels:\n- name: a\n- name: b\nz: 1\n",
    "comments": "models: # all\n\n    # first\n    - name: a\n    # - name: ours\n",
    "empty": "models: []\nname: mine\n",
    "null": "models: ~\n",
    "deep": "models:\n  -\n    name: a\n",
}


def keys(text: str) -> Any:
    return apply_keys(text, KEYS)


def item(text: str) -> Any:
    return apply_item(text, "models", ITEM, name="ours", around=AROUND)


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_keys_are_set_and_come_back(text: str) -> None:
    applied = keys(text)

    assert yaml.safe_load(applied.text) == (yaml.safe_load(text) or {}) | {
        "model": "ours",
        "weak-model": "w",
    }
    back = take_back(applied.text, applied.note).text
    assert back == (text if not text or text.endswith("\n") else text + "\n")


@pytest.mark.parametrize("text", [*FILES.values(), *LISTS.values()], ids=[*FILES, *LISTS])
def test_an_item_is_at_the_head_of_its_list_and_comes_back(text: str) -> None:
    applied = item(text)

    before = yaml.safe_load(text) or {}
    wanted = {"name": "p", "schema": "v1"} | before
    wanted["models"] = [OURS, *(before.get("models") or [])]
    assert yaml.safe_load(applied.text) == wanted
    back = take_back(applied.text, applied.note).text
    assert back == (text if not text or text.endswith("\n") else text + "\n")


@given(
    st.dictionaries(
        st.sampled_from(["model", "models", "name", "a-b", "c.d", "x y"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=100),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_whatever_a_yaml_file_says_it_is_changed_rightly_or_left_alone(
    value: dict[str, Any], flow: bool
) -> None:
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    try:
        applied = keys(text)
    except Refused:
        return
    said = yaml.safe_load(text)  # NEL does not survive PyYAML's own writer
    assert yaml.safe_load(applied.text) == said | {"model": "ours", "weak-model": "w"}
    assert take_back(applied.text, applied.note).text == text


def test_lines_that_were_added_outside_stay() -> None:
    applied = item("models:\n- name: a\n")
    text = applied.text.replace("- name: a\n", "- name: a\n- name: new\n")

    back = take_back("# top\n" + text, applied.note)

    assert back.text == "# top\nmodels:\n- name: a\n- name: new\n"


def test_lines_that_were_added_between_the_marks_are_not_thrown_away() -> None:
    applied = keys("")
    text = applied.text.replace(END, f"dark-mode: true\n{END}")

    with pytest.raises(Refused, match="line 4, between"):
        take_back(text, applied.note)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- a\n", "line 1 of it is not understood"),
        ("{a: 1}\n", "not understood"),
        ("a: 1\n---\nb: 1\n", "line 2"),
        ("a: 1\n...\n", "line 2"),
        ("  a: 1\n", "not understood"),
        ("\ta: 1\n", "not understood"),
        ("a: 1\n\tb: 2\n", "not understood"),
        ("%YAML 1.1\n---\na: 1\n", "not understood"),
        ("? a\n: 1\n", "not understood"),
        ("a: 1\na: 2\n", "it has a twice"),
        ("model: |\n  x\n", "several lines"),
        ("model: &m x\n", "several lines"),
        ("model:\n  a: 1\n", "several lines"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        keys(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("models: [{name: a}]\n", "not a list with one item"),
        ("models:\n  a: 1\n", "not a list with one item"),
        ("models:\n", "not a list with one item"),
        ("models:\n- name: ours\n", "already"),
        ("models:\n- provider: x\n  name: 'ours' # mine\n", "already"),
    ],
)
def test_a_list_of_another_form_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        item(text)


def test_marks_stand_where_the_list_does() -> None:
    text = item("models:\n    - name: a\n").text

    assert f"models:\n    {BEGIN}\n    - name" in text
