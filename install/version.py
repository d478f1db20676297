"""The version of this checkout, from git: what `qwen-proxy --version` and `GET /health` tell.

    python install/version.py              print it
    python install/version.py FILE         write it into FILE, a module that has it as `version`
    python install/version.py FILE VERSION write this one, for a build that has no git

Without git (a source distribution) it is that of `qwen_wsgi/_version.py`, or the plain release.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "qwen_wsgi"
_TIMEOUT_S = 10


def version(root: Path = ROOT) -> str:
    """By PEP 440: `0.1.0` for its tag `v0.1.0`, `0.1.1.dev12+g1a2b3c4` twelve commits later,
    `0.1.0+g1a2b3c4` without any tag; `.dirty` at the end of what differs from the commit."""
    base = release(root)
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        # An unpacked archive, maybe inside a repository of somebody else.
        return _assigned(root / "qwen_wsgi/_version.py", "version") or base
    # Not by `describe --dirty`, which writes the index.
    dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    told = _git(root, "describe", "--tags", "--match", "v[0-9]*", "--long") or ""
    if tagged := re.fullmatch(r"v(\d+(?:\.\d+)*)-(\d+)-(g[0-9a-f]+)", told):
        tag, count, commit = tagged.groups()
        if count == "0":
            return f"{tag}+{commit}.dirty" if dirty else tag
        first, _, last = tag.rpartition(".")
        following = f"{first}.{int(last) + 1}" if first else str(int(last) + 1)
        found = f"{following}.dev{count}+{commit}"
    else:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        if not commit:
            return base
        found = f"{base}+g{commit}"
    return f"{found}.dirty" if dirty else found


def release(root: Path = ROOT) -> str:
    """The package's RELEASE, for checkouts without tags; "0" if it has none."""
    return _assigned(root / "qwen_wsgi/__init__.py", "RELEASE") or "0"


def write(path: Path, value: str) -> None:
    """Make the module that holds the version; leave it alone if it is right already."""
    text = (
        '"""The version of this build, written by install/version.py."""\n\n'
        f'from __future__ import annotations\n\nversion = "{value}"\n'
    )
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _git(root: Path, *command: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(
            # `sudo make install`: root, too, may read a checkout that belongs to a person.
            ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *command],
            cwd=root,
            # Nor does it leave an index of root's there.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _assigned(path: Path, name: str) -> str | None:
    """The text that a module gives to a name, read without running the module."""
    try:
        found = re.search(rf'^{name}(?:: \w+)? = "([^"]+)"$', path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else version())
    else:
        print(version())
