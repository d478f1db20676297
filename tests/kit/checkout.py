"""Copies of the checkout to build and install from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.kit.servers import REPO

#: As it was before any fixture cleared it: pip may need a proxy.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name in ("PATH", "HOME", "TMPDIR") or name.lower().endswith("_proxy") or name[:4] == "PIP_"
}


def copy_of_checkout(target: Path) -> Path:
    """What `make install` needs of it, without git's own files."""
    target.mkdir()
    for name in ("qwen_wsgi", "install", "systemd", "nginx", "share"):
        shutil.copytree(REPO / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "setup.py", "setup.cfg", "pyproject.toml", "gunicorn.conf.py"):
        shutil.copy(REPO / name, target)
    for name in ("wsgi.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(REPO / name, target)
    return target
