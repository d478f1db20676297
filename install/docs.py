"""The documentation as a site, with a search, and with nothing from elsewhere: `make docs`.

    python install/docs.py [DIRECTORY]   build it; default: dist/docs

It is made by Zensical, the successor of MkDocs by the makers of its Material theme: MkDocs itself
has had no release since 2024. Pages are those of docs/; README.md is the first one. A page without
a place in NAV stands in its last part, so that a new one is never lost.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"
_TIMEOUT_S: Final = 120

#: Files of the checkout that are pages, too.
_MORE_PAGES: Final[Mapping[str, str]] = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}

#: The parts of the site, with their pages in order; a page's title is its own heading. A directory
#: stands for all pages in it.
NAV: Final[Mapping[str, tuple[str, ...]]] = {
    "Start": ("index.md", "clients.md", "settings.md"),
    "Deployment": (
        *("deployment.md", "operations.md", "docker.md", "boxes.md", "security.md"),
        *("console.md", "metrics.md", "usage.md"),
    ),
    "Accounts and keys": (
        *("credentials.md", "routing.md", "plans.md", "keys.md", "limits.md"),
        "web-account.md",
    ),
    "API": (
        *("dialects.md", "images.md", "videos.md", "speech.md", "transcription.md", "media.md"),
        *("files.md", "tool-runner.md", "openapi.md"),
    ),
    "Reference": ("reference",),
    "Workflow": ("workflow.md", "contributing.md", "changelog.md"),
    "Implementation": ("implementation.md", "architecture.md", "benchmarks.md"),
    "Decisions": ("decisions",),
    "More": (),
}

_LINK: Final = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def stage(target: Path) -> None:
    """Put all pages into a directory, with the links between them."""
    shutil.copytree(DOCS, target)
    for source, name in _MORE_PAGES.items():
        shutil.copy(ROOT / source, target / name)
    origins = {target / name: ROOT / source for source, name in _MORE_PAGES.items()}
    for page in target.rglob("*.md"):
        origin = origins.get(page, DOCS / page.relative_to(target))
        page.write_text(_linked(page.read_text(), origin, page, target))


def _linked(text: str, origin: Path, page: Path, target: Path) -> str:
    """A page's text with its links as they are in the site; to a file that is not in it, none."""

    def changed(found: re.Match[str]) -> str:
        head, link, anchor, tail = found[1], found[2], found[3] or "", found[4]
        if link.startswith(("http:", "https:", "mailto:")):
            return found[0]
        there = (origin.parent / link).resolve()
        place = _place(there)
        if place is None:
            return f"{head}{page.name}{tail}" if there == DOCS else found[0]
        up = "../" * len(page.parent.relative_to(target).parts)
        return f"{head}{up}{place}{anchor}{tail}"

    return _LINK.sub(changed, text)


def _place(file: Path) -> str | None:
    """Where a file of the checkout is in the site."""
    if file.is_dir():
        first = min(file.glob("*.md"), default=None)
        return _place(first) if first else None
    if file.is_relative_to(DOCS):
        return str(file.relative_to(DOCS))
    return _MORE_PAGES.get(str(file.relative_to(ROOT))) if file.is_relative_to(ROOT) else None


def nav(pages: Path) -> list[dict[str, list[str]]]:
    """The parts with the pages that are there; the last one has those that nobody placed."""
    rest = {str(page.relative_to(pages)) for page in pages.rglob("*.md")}
    parts: dict[str, list[str]] = {}
    for title, places in NAV.items():
        found = [page for place in places for page in _pages_at(pages, place)]
        parts[title] = [page for page in found if page in rest]
        rest -= set(found)
    parts["More"] += sorted(rest)
    return [{title: found} for title, found in parts.items() if found]


def _pages_at(pages: Path, place: str) -> Iterator[str]:
    if place.endswith(".md"):
        yield place
    else:
        yield from sorted(str(page.relative_to(pages)) for page in (pages / place).rglob("*.md"))


def configuration(pages: Path, site: Path) -> dict[str, Any]:
    """What Zensical is told."""
    return {
        "site_name": "qwen-proxy",
        "site_description": "Qwen models for every OpenAI or Anthropic client on a LAN",
        "docs_dir": pages.name,
        "site_dir": str(site),
        "nav": nav(pages),
        "use_directory_urls": False,
        "theme": {
            # Those of the machine: no fonts of others.
            "font": False,
            "features": ["navigation.sections", "navigation.top", "search.highlight", "toc.follow"],
        },
        "extra": {"generator": False},
    }


def build(site: Path) -> None:
    """Build the site.

    Raises:
        subprocess.CalledProcessError: it was refused, for example for a link to nowhere; Zensical
            has printed why.
    """
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        stage(work / "pages")
        config = work / "mkdocs.yml"
        # JSON is YAML, too.
        config.write_text(json.dumps(configuration(work / "pages", work / "site"), indent=1))
        subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(config)],
            cwd=work,
            check=True,
            timeout=_TIMEOUT_S,
        )
        shutil.rmtree(site, ignore_errors=True)
        site.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(work / "site", site)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist/docs")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
