"""The pages for people: links lead somewhere, and what was once wrong does not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        linked = page if not name else (page.parent / name)
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.resolve()), target


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("systemd-run", "sudo qwen-proxy does it"),
        ("HOST:8080", "the service has no such port"),
        ("localhost:8080/health", "the service has no such port"),
        ("venv/bin/qwen-proxy status", "the command is on the PATH"),
    ],
)
def test_what_is_wrong_for_the_service_stands_nowhere(words: str, why: str) -> None:
    # Decisions tell what was before.
    pages = [page for page in PAGES if page.parent.name != "decisions"]
    pages += [*(ROOT / "systemd").iterdir(), ROOT / "nginx/qwen-proxy.conf"]

    assert [str(page) for page in pages if words in page.read_text()] == [], why


def test_there_is_one_way_to_install_the_owner_s_drop_in() -> None:
    ways = [page.name for page in PAGES if "qwen-proxy.service.d/owner.conf" in page.read_text()]

    assert ways == ["operations.md"]


def test_every_command_of_the_architecture_is_one() -> None:
    from qwen_wsgi.cli import main

    text = (ROOT / "docs/architecture.md").read_text()
    room = text[text.index("  cli/ ") : text.index("  sandbox/ ")]
    commands = set(re.findall(r"^    (\w+)\b", main._parser().format_help(), re.MULTILINE))
    assert commands == {
        *("serve", "status", "models", "settings", "doctor", "clients", "login", "creds", "state"),
        *("record", "replay", "keys", "usage", "healthcheck", "run", "calls", "tools"),
    }
    for command in commands:
        assert command in room, command
