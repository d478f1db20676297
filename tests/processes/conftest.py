"""Logins that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.processes.logins import Home


@pytest.fixture
def shared_home(tmp_path: Path) -> Iterator[Home]:
    with Sandbox() as sandbox:
        home = Home(tmp_path / "shared", sandbox)
        yield home
        home.close()
