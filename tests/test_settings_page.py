"""docs/settings.md has every setting, with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qwen_wsgi.settings import Settings, names

PAGE = Path(__file__).resolve().parents[1] / "docs/settings.md"
FIELDS = {item.metadata["env"]: item for item in dataclasses.fields(Settings) if item.metadata}

#: The names and the default of each row of the tables.
ROWS = [
    (re.findall(r"`([A-Z_]+)`", cells[0]), cells[1].strip())
    for line in PAGE.read_text().splitlines()
    if line.startswith("| `") and len(cells := line.strip("|").split(" | ")) == 3
]


def test_every_setting_stands_there_once() -> None:
    named = [name for row, _ in ROWS for name in row]

    assert sorted(named) == sorted(names())


@pytest.mark.parametrize(("row", "default"), ROWS, ids=lambda each: str(each))
def test_the_default_is_that_of_the_code(row: list[str], default: str) -> None:
    meta, value = FIELDS[row[0]].metadata, FIELDS[row[0]].default
    shown = re.fullmatch(r"`(.+)`", default)
    if shown is None or row[0] == "QWEN_HOME":
        # In words, where there is no value of its own.
        assert meta["shown_default"] or value in ("", (), None), default
        return
    assert meta["parse"](shown[1]) == value


def test_the_variables_of_others_that_are_read_stand_there() -> None:
    from qwen_wsgi.credentials.sources import dashscope_files

    page = PAGE.read_text()
    for name in (*dashscope_files.NAMES, "HTTPS_PROXY", "NO_COLOR", "REQUESTS_CA_BUNDLE"):
        assert name in page or name == dashscope_files.KEY_ENV
