"""A fresh sandbox for each test, which must end without a mistake of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwen_wsgi.sandbox import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running
        state = running.state()
    assert state["internal_errors"] == 0, state["last_failure"]
