"""How many examples a property is tried with."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """The settings of a property that needs another number of examples than the usual 100.

    The number is that of a whole run; `--hypothesis-profile=few` (see tests/conftest.py) tries a
    fifth of it.
    """
    scale = settings.default.max_examples if settings.default else 100
    return settings(max_examples=max(1, count * scale // 100))
