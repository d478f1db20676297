"""Checks that no compiler makes: `make lint` and the pre-commit hooks run it.

    python .ci/check_files.py             all files that git knows, or would take
    python .ci/check_files.py FILE...     these

White space at the end of lines, the newline at the end of a file, marks of a merge, files that are
too large for a repository, and whether JSON, TOML, YAML and INI files can be read.
"""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 512 * 1024
#: What upstreams sent, and what a search found, byte by byte.
AS_RECORDED = (".sse", ".bin")
_MERGE_MARKS = (b"<" * 7 + b" ", b">" * 7 + b" ", b"|" * 7 + b" ")


def _ini(text: str) -> None:
    configparser.ConfigParser(interpolation=None).read_string(text)


_READERS: dict[str, Callable[[str], object]] = {
    ".json": json.loads,
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".cfg": _ini,
}


def complaints(path: Path) -> Iterator[str]:
    """What is wrong with a file, as `line: what` or `what`."""
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        yield f"{len(content) // 1024} kB are more than {MAX_BYTES // 1024}"
    if b"\0" in content:
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.startswith(_MERGE_MARKS):
            yield f"{number}: a mark of a merge"
        if line != line.rstrip() and path.suffix not in AS_RECORDED:
            yield f"{number}: white space at the end"
    if content and not content.endswith(b"\n") and path.suffix not in AS_RECORDED:
        yield "no newline at the end"
    if content.endswith(b"\n\n") and path.suffix not in AS_RECORDED:
        yield "empty lines at the end"
    if reader := _READERS.get(path.suffix):
        try:
            reader(content.decode())
        except (ValueError, yaml.YAMLError, configparser.Error) as error:
            yield f"cannot be read: {error}"


def files() -> list[Path]:
    """The files of the checkout; none outside of git, where nobody commits."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode != 0:
        return []
    return [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]


def main(arguments: list[str]) -> int:
    wrong = 0
    for path in [Path(name) for name in arguments] or files():
        if path.is_file() and not path.is_symlink():
            for complaint in complaints(path):
                wrong += 1
                print(f"{path.relative_to(ROOT) if path.is_absolute() else path}: {complaint}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
