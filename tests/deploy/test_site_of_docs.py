"""The documentation as a site: every link leads somewhere, and nothing is from elsewhere."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.kit.servers import REPO

pytestmark = [pytest.mark.once, pytest.mark.timeout(120)]

SCRIPT: dict[str, Any] = runpy.run_path(str(REPO / "install/docs.py"))

#: What a browser loads by itself, by element and attribute.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What one page links to and loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src"):
            if name in given:
                self.links.add(given[name])
                relation = given.get("rel", "")
                if (tag, name) in LOADED or (tag == "link" and relation != "canonical"):
                    self.loaded.add(given[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical")
    place = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, str(REPO / "install/docs.py"), str(place)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_page_of_the_docs_is_there(pages: dict[Path, Page], site: Path) -> None:
    wanted = {path.relative_to(REPO / "docs") for path in (REPO / "docs").rglob("*.md")}

    assert {page.with_suffix(".html") for page in wanted} <= {
        path.relative_to(site) for path in pages
    }
    assert (site / "index.html").is_file()


def test_every_link_leads_somewhere(pages: dict[Path, Page], site: Path) -> None:
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the top of wherever the site is
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == ".":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            there = target.is_file() and target.is_relative_to(site)
            known = pages.get(target)
            if not there or (anchor and known and anchor not in known.anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    outside = {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc}
    assert outside == set()
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text()), style


def test_what_one_looks_for_is_found_by_its_name(site: Path) -> None:
    found = json.dumps(json.loads((site / "search.json").read_text()))
    front = (site / "index.html").read_text()
    for name in ("Deployment", "Workflow", "Implementation"):
        assert f'"{name}"' in found
        assert re.search(rf">\s*{name}\s*<", front)
        assert (site / f"{name.lower()}.html").is_file()


def test_a_page_that_nobody_placed_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# A\n")
    (tmp_path / "new.md").write_text("# B\n")
    (tmp_path / "decisions").mkdir()
    (tmp_path / "decisions/001-x.md").write_text("# C\n")

    assert SCRIPT["nav"](tmp_path) == [
        {"Start": ["index.md"]},
        {"Decisions": ["decisions/001-x.md"]},
        {"More": ["new.md"]},
    ]


def test_no_page_is_placed_that_is_gone() -> None:
    places = [place for part in SCRIPT["NAV"].values() for place in part]
    placed = {place for place in places if place.endswith(".md")}

    pages = {path.name for path in (REPO / "docs").glob("*.md")}
    assert placed - pages - set(SCRIPT["_MORE_PAGES"].values()) == set()
