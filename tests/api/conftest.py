"""Whatever an application under test did to the log is undone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """`create_app` sends the package's log to the standard error of that moment."""
    log = logging.getLogger("qwen_wsgi")
    before = (log.handlers[:], log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before
