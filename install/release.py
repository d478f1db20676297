"""`make release`: checks that a release is ready, runs the tests, and builds its files in dist/.

    python install/release.py          all of it
    python install/release.py --check  only what needs no minutes

It makes no tag: the last lines that it prints are the commands for it.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
_VERSION: Final[Mapping[str, Any]] = runpy.run_path(str(ROOT / "install/version.py"))
#: `## 0.2.0 (2026-12-01)`, or `## Unreleased`.
_SECTION: Final = re.compile(
    r"^## (?:(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)|Unreleased)$", re.MULTILINE
)


def sections(changelog: str) -> dict[str, str]:
    """The text of each section of the changelog, by its version; "" is what is not released.

    Raises:
        ValueError: a heading has another form.
    """
    for line in changelog.splitlines():
        if line.startswith("## ") and not _SECTION.fullmatch(line):
            raise ValueError(f"CHANGELOG.md: {line!r} is not like `## 0.2.0 (2026-12-01)`")
    parts = _SECTION.split(changelog)[1:]
    return {
        version or "": text.strip() for version, text in zip(parts[::2], parts[1::2], strict=True)
    }


def problems(root: Path = ROOT) -> Iterator[str]:
    """What is not ready, a sentence each, with what to do."""
    version = _VERSION["release"](root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"RELEASE in qwen_wsgi/__init__.py is {version!r}, which is not like 0.2.0."
        return
    if changed := _git(root, "status", "--porcelain"):
        yield f"Files differ from the last commit: commit or remove them.\n{changed}"
    tags = _git(root, "tag", "--list", "v*").split()
    released = [_numbers(tag[1:]) for tag in tags if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    if released and _numbers(version) <= max(released):
        newest = ".".join(map(str, max(released)))
        yield (
            f"RELEASE in qwen_wsgi/__init__.py is {version}, and {newest} is released: "
            "set it to the next version."
        )
    try:
        texts = sections((root / "CHANGELOG.md").read_text())
    except ValueError as error:
        yield f"{error}."
        return
    if not texts.get(version):
        yield (
            f"CHANGELOG.md says nothing of {version}: turn its Unreleased section into "
            f"`## {version} (DATE)`."
        )
    if texts.get(""):
        yield "CHANGELOG.md has unreleased changes: move them into the section of the version."
    elif "" not in texts:
        yield "CHANGELOG.md has no Unreleased section for what comes next: add an empty one on top."


def build(version: str, dist: Path, root: Path = ROOT) -> list[Path]:
    """Build wheel and source distribution of the last commit, as they will be with its tag."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as file:
            file.extractall(directory, filter="data")
        # The copy has no git; it gets the version as a file.
        _VERSION["write"](Path(directory, "qwen_wsgi/_version.py"), version)
        dist.mkdir(parents=True, exist_ok=True)
        for what in ("sdist", "wheel"):
            code = (
                f"import sys; from setuptools import build_meta as b; b.build_{what}(sys.argv[1])"
            )
            subprocess.run(
                [sys.executable, "-c", code, str(dist.resolve())],
                cwd=directory,
                check=True,
                stdout=subprocess.DEVNULL,
            )
    return sorted(dist.glob(f"*{version}*"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def main() -> int:
    """Check, test and build; the exit status."""
    if found := list(problems()):
        print("Not ready for a release:", *found, sep="\n- ", file=sys.stderr)
        return 1
    if sys.argv[1:] == ["--check"]:
        return 0
    if subprocess.run(["make", "test"], cwd=ROOT).returncode:
        print("Not ready for a release: a test failed.", file=sys.stderr)
        return 1
    version = _VERSION["release"](ROOT)
    files = build(version, ROOT / "dist")
    tag = f"v{version}"
    print("Ready:", *(str(file.relative_to(ROOT)) for file in files), sep="\n  ")
    print(f"Then:\n  git tag -a {tag} -m 'qwen-proxy {version}'\n  git push origin {tag}")
    print("  make deb           # with the tag, for the Debian package")
    return 0


if __name__ == "__main__":
    sys.exit(main())
