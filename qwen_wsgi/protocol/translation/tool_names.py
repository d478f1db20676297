"""Makes names of tools that chat takes: at most 64 letters, digits, `_` and `-`."""

from __future__ import annotations

import hashlib
import re
from typing import Final

LONGEST: Final = 64

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_-]")


def fits(name: str) -> bool:
    """Whether chat takes a name as it is."""
    return _NAME.fullmatch(name) is not None


def fitting(name: str, seed: str) -> str:
    """Cut a name and end it in a hash of `seed`, so that it is the same in every request."""
    mark = "_" + hashlib.sha256(seed.encode(errors="replace")).hexdigest()[:8]
    return _NO_NAME.sub("_", name)[: LONGEST - len(mark)] + mark
