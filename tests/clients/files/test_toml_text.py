"""TOML gets our keys between marks, means what it should, and comes back as it was."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from qwen_wsgi.clients.files.texts import ASIDE, BEGIN, END, Refused
from qwen_wsgi.clients.files.toml_text import apply, take_back

TOP = ('model = "ours"', 'model_provider = "qwen"')
TABLE = "model_providers.qwen"
LINES = ('name = "qwen-proxy"', "supports_websockets = true")
OURS = {"name": "qwen-proxy", "supports_websockets": True}
KEYS = ("model", "model_provider")

FILES = {
    "new": "",
    "comment": "# mine\n",
    "keys": 'model = "gpt"\nother = 1\n',
    "tables": '[projects."/a b"]\ntrust_level = "trusted"\n\n[[hooks]]\nx = [\n  1,\n]\n',
    "own provider": "[model_providers.qwen]\nname = 1\n[model_providers.qwen.h]\na = 1\n[z]\n",
    "other provider": '[model_providers.other]\nname = "x"  # y\n',
    "strings": 'instructions = """\n[not a table]\n"""\n',
    "crlf": 'model = "gpt"\r\n[a]\r\nb = 1\r\n',
    "no line feed": "[a]\nb = 1",
    "a dotted key": "tui.theme = 1\n",
}


def written(text: str) -> str:
    return apply(text, TOP, TABLE, LINES).text


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_the_file_says_what_it_said_with_ours_in_it(text: str) -> None:
    wanted: dict[str, Any] = tomllib.loads(text) | {"model": "ours", "model_provider": "qwen"}
    wanted["model_providers"] = wanted.get("model_providers", {}) | {"qwen": OURS}

    assert tomllib.loads(written(text)) == wanted


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_it_comes_back(text: str) -> None:
    back = take_back(written(text), KEYS, TABLE)

    # Only an undo with the copy knows that there was no line feed at the end.
    assert back.text == (text if not text or text.endswith("\n") else text + "\n")
    assert back.kept == ()


def test_what_a_program_adds_between_the_marks_stays() -> None:
    text = written('model = "gpt"\n')
    table = '[projects."/x"]\ntrust_level = "trusted"\n'
    text = text.replace(f"{BEGIN}\nmodel", f"{BEGIN}\napproval = 1\nmodel")
    text = text.removesuffix(f"{END}\n") + f"{table}{END}\n"

    assert take_back(text, KEYS, TABLE).text == f'approval = 1\nmodel = "gpt"\n{table}'


def test_another_value_between_the_marks_is_ours_all_the_same() -> None:
    text = written('model = "gpt"\n').replace('"ours"', '"another of ours"')

    assert take_back(text, KEYS, TABLE).text == 'model = "gpt"\n'


def test_a_key_that_was_set_again_stays_and_the_old_one_stays_aside() -> None:
    text = written('model = "gpt"\n').replace(END, f'{END}\n"model" = "new"', 1)
    text = text.replace('model = "ours"\n', "")

    back = take_back(text, KEYS, TABLE)

    assert tomllib.loads(back.text) == {"model": "new"}
    assert ASIDE in back.text
    assert len(back.kept) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model = ", "cannot be parsed"),
        ("model = 1\nmodel = 2\n", "cannot be parsed"),
        ('model_providers = {qwen = {name = "x"}}\n', "cannot be put aside"),
        ('model = """\na\n"""\n', "cannot be put aside"),
        ('model_providers.qwen.name = "x"\n', "cannot be put aside"),
        ("model_providers = 1\n", "is not a table"),
    ],
)
def test_what_cannot_be_put_aside_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        written(text)


@pytest.mark.parametrize("mark", [BEGIN, END])
def test_without_a_mark_nothing_is_taken_back(mark: str) -> None:
    with pytest.raises(Refused, match="is missing"):
        take_back(written("").replace(f"{mark}\n", "", 1), KEYS, TABLE)
