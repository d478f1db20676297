"""A clock that stands still, and a home directory to put qwen-code's files into."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.fakes.clock import FakeClock
from tests.kit.qwen_home import Home


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def home(tmp_path: Path, clock: FakeClock) -> Home:
    return Home(tmp_path, clock)


@pytest.fixture(autouse=True, scope="module")
def _nothing_of_other_files_is_closed_meanwhile() -> None:
    """Some tests here count open files, and what others left in a cycle is closed at any time."""
    gc.collect()
