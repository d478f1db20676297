"""Fixtures that start servers, and stop them whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import servers
from tests.kit.servers import Server, StartServer, short_directory


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the test's own."""
    with short_directory() as directory:
        yield Path(directory)


@pytest.fixture
def gunicorn(place: Path) -> Iterator[StartServer]:
    """Starts gunicorn with the shipped configuration, and waits until it answers."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Server:
            return stack.enter_context(servers.serving(servers.start_gunicorn(place, **options)))

        yield start


@pytest.fixture
def nginx(place: Path) -> Iterator[StartServer]:
    """Starts nginx with the shipped site in front of an upstream."""
    if not servers.nginx():
        pytest.skip("nginx is not installed")
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any) -> Server:
            return stack.enter_context(servers.start_nginx(place, *arguments))

        yield start
