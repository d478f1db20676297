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


def outdated(directory: Path) -> list[str]:
    found: list[str] = SCRIPT["generated"].outdated(directory, SCRIPT["texts"]())
    return found


def test_the_pages_are_up_to_date() -> None:
    """If this fails: `make reference`."""
    assert outdated(PAGES) == []


def test_a_page_that_is_old_or_nobody_s_is_found(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    shutil.copytree(PAGES, pages)
    (pages / "errors.md").write_text("# Errors\n")
    (pages / "headers.md").unlink()
    (pages / "more.md").write_text("# More\n")
    (pages / "below").mkdir()
    (pages / "below/more.md").write_text("# More\n")

    assert outdated(pages) == ["below/more.md", "errors.md", "headers.md", "more.md"]


def test_the_program_writes_says_what_is_old_and_explains_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `install/share.py` does, which has the same command line."""
    generated, directory = SCRIPT["generated"], tmp_path / "pages"
    monkeypatch.setattr(generated, "ROOT", tmp_path)

    def run(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["reference.py", *words])
        generated.run(directory, lambda: {"a/b.md": "B\n"}, again="make it", usage="the usage")

    with pytest.raises(SystemExit, match="^pages/ is not up to date: a/b.md; run `make it`$"):
        run("--check")
    run()
    run("--check")
    assert (directory / "a/b.md").read_text() == "B\n"
    with pytest.raises(SystemExit, match="the usage"):
        run("--other")


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
