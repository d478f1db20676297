"""Secrets for tests, each of which must never turn up in a log.

`tests/conftest.py` looks for every one of them in all that was logged in the whole run.
"""

from __future__ import annotations

import collections
import sys
import zlib

_made: list[str] = []
#: Of each label in each file. Names of tests have secrets in them, and the processes of a run,
#: which read the files in different orders, must find the same names.
_counts: collections.Counter[str] = collections.Counter()


def secret(label: str) -> str:
    """A new key that looks like a real one; its end, which may be shown, is not unique."""
    asked = f"{sys._getframe(1).f_globals['__name__']} {label}"
    _counts[asked] += 1
    number = zlib.crc32(f"{asked} {_counts[asked]}".encode())
    value = f"sk-{label}-{number:08x}-qzqvnotforlogsqzqv-0000"
    _made.append(value)
    return value


def core(value: str) -> str:
    """The part of a secret that must not be shown: all but the last four characters."""
    return value[:-4]


def made() -> tuple[str, ...]:
    """Every secret so far."""
    return tuple(_made)
