"""A machine and a home for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import settings as settings_module
from qwen_wsgi.settings import Settings
from tests.fakes.machine import FakeMachine
from tests.kit.installed_machine import Load


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    root = tmp_path / "root"
    root.mkdir()
    return FakeMachine(root)


@pytest.fixture
def load(home: Path) -> Load:
    """Settings of an environment."""

    def load(**environ: Any) -> Settings:
        return settings_module.load(
            {"HOME": str(home), **{name: str(value) for name, value in environ.items()}}
        )

    return load


@pytest.fixture
def qwen_home(home: Path) -> Path:
    """qwen-code's directory, as qwen-code makes it."""
    directory = home / ".qwen"
    directory.mkdir(mode=0o700)
    return directory
