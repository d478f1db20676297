"""Permissions mean nothing to root, as which CI runs: a way for tests to be somebody else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: `nobody` on every Linux.
_NOBODY = 65534


@contextlib.contextmanager
def as_ordinary_user(tree: Path) -> Iterator[None]:
    """Give up root's privileges for a while, owning `tree` and what is below it."""
    if os.geteuid() != 0:
        yield
        return
    for directory in tree.parents:
        # pytest's directories are closed to others; being passed through is all that is needed.
        if directory.stat().st_mode & 0o077 == 0:
            directory.chmod(0o711)
    for path in (tree, *tree.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
