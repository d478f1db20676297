"""`make release` refuses what is not ready, says why, and builds what the tag will be."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit.servers import REPO

pytestmark = pytest.mark.once

SCRIPT: dict[str, Any] = runpy.run_path(str(REPO / "install/release.py"))
READY = "# Changelog\n\n## Unreleased\n\n## 0.2.0 (2026-12-01)\n\n- Something.\n"


class Repository:
    """A repository that is ready for the release 0.2.0."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "qwen_wsgi").mkdir()
        self.write("qwen_wsgi/__init__.py", 'RELEASE = "0.2.0"\n')
        self.write("CHANGELOG.md", READY)
        self.git("init", "--quiet")
        self.commit()
        self.git("tag", "v0.1.9")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def git(self, *command: str) -> None:
        names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(["git", *names, *command], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "All")

    def problems(self) -> list[str]:
        return list(SCRIPT["problems"](self.root))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    root = tmp_path / "repository"
    root.mkdir()
    return Repository(root)


def test_it_is_ready(repository: Repository) -> None:
    assert repository.problems() == []


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("qwen_wsgi/__init__.py", 'RELEASE = "0.2"\n', "not like 0.2.0"),
        ("qwen_wsgi/__init__.py", 'RELEASE = "0.1.9"\n', "0.1.9 is released"),
        ("qwen_wsgi/__init__.py", 'RELEASE = "0.1.10"\n', "says nothing of 0.1.10"),
        ("CHANGELOG.md", READY.replace("- Something.\n", ""), "says nothing of 0.2.0"),
        ("CHANGELOG.md", READY.replace("## Unreleased\n", ""), "no Unreleased section"),
        ("CHANGELOG.md", READY.replace("ased\n", "ased\n\n- More.\n"), "has unreleased changes"),
        ("CHANGELOG.md", READY.replace(" (2026-12-01)", ""), "is not like"),
    ],
)
def test_what_is_not_ready_is_told(repository: Repository, file: str, text: str, why: str) -> None:
    repository.write(file, text)
    repository.commit()

    assert any(why in each for each in repository.problems())


def test_a_file_that_is_not_committed_is_told(repository: Repository) -> None:
    repository.write("new.py", "")

    assert ["new.py" in each for each in repository.problems()] == [True]


def test_the_changelog_has_the_form() -> None:
    assert "" in SCRIPT["sections"]((REPO / "CHANGELOG.md").read_text())


def test_the_files_have_the_version_of_the_tag(tmp_path: Path) -> None:
    built = SCRIPT["build"]("9.8.7", tmp_path)

    assert [file.name for file in built] == [
        "qwen_wsgi-9.8.7-py3-none-any.whl",
        "qwen_wsgi-9.8.7.tar.gz",
    ]
