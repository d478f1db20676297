"""Secrets for tests, each of which must never turn up in a log.

`tests/conftest.py` looks for every one of them in all that was logged in the whole run.
"""

from __future__ import annotations

import itertools

_made: list[str] = []
_numbers = itertools.count(1)


def secret(label: str) -> str:
    """A new key that looks like a real one; its end, which may be shown, is not unique."""
    value = f"sk-{label}-{next(_numbers):04d}-qzqvnotforlogsqzqv-0000"
    _made.append(value)
    return value


def core(value: str) -> str:
    """The part of a secret that must not be shown: all but the last four characters."""
    return value[:-4]


def made() -> tuple[str, ...]:
    """Every secret so far."""
    return tuple(_made)
