"""Permissions mean nothing to root, as which CI runs: a way for tests to be somebody else."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: `nobody` on every Linux.
_NOBODY = 65534
#: What the product decodes with. Python reads a codec when it is first used, which `nobody` may not
#: if Python is below /root, and does not try again.
_CODECS = ("utf-8-sig", "ascii", "latin-1", "idna")


@contextlib.contextmanager
def as_ordinary_user(tree: Path) -> Iterator[None]:
    """Give up root's privileges for a while, owning `tree` and what is below it."""
    if os.geteuid() != 0:
        yield
        return
    for codec in _CODECS:
        codecs.lookup(codec)
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
