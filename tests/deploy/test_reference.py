"""docs/reference says what the code does: its pages are as they would be written now."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.accounting.metric_families import FAMILIES
from qwen_wsgi.settings import names
from tests.kit.servers import REPO

pytestmark = pytest.mark.once

SCRIPT: dict[str, Any] = runpy.run_path(str(REPO / "install/reference.py"))
PAGES = REPO / "docs/reference"


def test_the_pages_are_up_to_date() -> None:
    """If this fails: `make reference`."""
    assert SCRIPT["outdated"](PAGES) == []


def test_a_page_that_is_old_or_nobody_s_is_found(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    shutil.copytree(PAGES, pages)
    (pages / "errors.md").write_text("# Errors\n")
    (pages / "headers.md").unlink()
    (pages / "more.md").write_text("# More\n")

    assert SCRIPT["outdated"](pages) == ["errors.md", "headers.md", "more.md"]


def test_every_command_setting_and_metric_stands_in_a_page_to_which_the_reference_leads() -> None:
    index = (PAGES / "index.md").read_text()
    for link, words in {
        "commands.md": ["## qwen-proxy models", "## qwen-proxy keys add"],
        "../settings.md": [f"`{name}`" for name in names()],
        "../metrics.md": [f"`{family.name}`" for family in FAMILIES],
    }.items():
        assert f"]({link}" in index
        text = (PAGES / link).read_text()
        assert [word for word in words if word not in text] == []
