"""What setup.cfg requires: its lowest versions, and the pinned ones that `make install` takes.

    python install/requirements.py lowest   print the lowest versions, as constraints for pip
    python install/requirements.py pin      write qwen_wsgi/constraints.txt anew: the newest
                                            versions within the bounds, with their files' hashes
    python install/requirements.py only EXTRA
                                            print the packages installed beside this Python that
                                            nothing but an extra needs

`pin` needs a package index. It installs its resolver, uv, into a directory that it removes again.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "setup.cfg"
PINNED = ROOT / "qwen_wsgi/constraints.txt"

#: The oldest Python that is resolved for; uv finds one set of versions for it and all newer ones.
_PYTHON = "3.11"
#: What the service runs on. Without it there would be packages for Windows and PyPy among them.
_MARKER = "platform_python_implementation == 'CPython' and sys_platform == 'linux'"
_RESOLVER = "uv >= 0.9, < 1"
_TIMEOUT_S = 300
#: The extras that `make install` installs.
_EXTRAS = ("pdf", "redis", "tools")
_HEAD = """\
# The dependencies of the proxy in the versions that `make install` installs, pip and setuptools
# too, each with the hashes of its files. Written by install/requirements.py from the bounds of
# setup.cfg and pyproject.toml; do not edit. `qwen-proxy doctor` compares what is installed with it.
"""


def required(*extras: str, path: Path = SETUP) -> list[str]:
    """The requirements of setup.cfg, one a line, with those of extras."""
    parser = configparser.ConfigParser()
    parser.read(path)
    text = parser["options"]["install_requires"]
    for extra in extras:
        text += parser["options.extras_require"][extra]
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def to_pin(path: Path = SETUP) -> list[str]:
    """What `make install` installs beside the proxy: its requirements, and what installs them."""
    build = tomllib.loads((path.parent / "pyproject.toml").read_text())["build-system"]
    return [*required(*_EXTRAS, path=path), "pip", *build["requires"]]


def only(extra: str, path: Path = SETUP) -> list[str]:
    """The packages that an extra of those that `make install` installs brings and nothing else
    needs, of what is installed beside this Python.

    Raises:
        metadata.PackageNotFoundError: a package that one of these extras needs is not installed.
    """
    others = (each for each in _EXTRAS if each != extra)
    needed = _needed(required(*others, path=path))
    return sorted(_needed(required(extra, path=path)) - needed)


def _needed(requirements: Iterable[str]) -> set[str]:
    """The names of packages that requirements bring, and of all that these need in turn."""
    # Not at the top: the other commands run before anything is installed.
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    waiting, seen = list(map(Requirement, requirements)), set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (key := (canonicalize_name(requirement.name), extra)) not in seen:
                seen.add(key)
                below = map(Requirement, metadata.requires(requirement.name) or [])
                waiting += [
                    each
                    for each in below
                    if each.marker is None or each.marker.evaluate({"extra": extra})
                ]
    return {name for name, _ in seen}


def lowest(path: Path = SETUP) -> list[str]:
    """`name == version` for each requirement, also of the developers' tools.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    found = []
    for line in required("dev", path=path):
        bound = re.match(r"([\w-]+)(?:\[[\w,-]+\])? >= ([\w.]+)", line)
        if not bound:
            raise ValueError(f"{path.name}: {line!r} has no lower bound")
        found.append(f"{bound[1]} == {bound[2]}")
    return found


def pin(path: Path = PINNED) -> None:
    """Write the constraints file.

    Raises:
        subprocess.CalledProcessError: there is no index, or nothing fits the bounds; uv said why.
    """
    wanted = "".join(f"{line} ; {_MARKER}\n" for line in to_pin())
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        tools = Path(directory, "bin")
        subprocess.run(
            [str(tools / "python"), "-m", "pip", "install", "--quiet", _RESOLVER],
            check=True,
            timeout=_TIMEOUT_S,
        )
        # From standard input and into an empty directory: the versions of the present file do not
        # count, so that every run is an upgrade.
        done = subprocess.run(
            [str(tools / "uv"), "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
            + ["--python-version", _PYTHON, "--no-header", "--no-annotate", "-"],
            cwd=directory,
            input=wanted,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
    # What is of older Pythons alone keeps that part of its marker.
    path.write_text(_HEAD + done.stdout.replace(f" ; {_MARKER}", "").replace(f" and {_MARKER}", ""))


if __name__ == "__main__":
    if sys.argv[1:] == ["pin"]:
        pin()
    elif sys.argv[1:] == ["lowest"]:
        print("\n".join(lowest()))
    elif sys.argv[1:2] == ["only"] and sys.argv[2:] in ([each] for each in _EXTRAS):
        print("\n".join(only(sys.argv[2])))
    else:
        sys.exit(__doc__)
