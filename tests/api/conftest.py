"""The application in this process, in front of the sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, running
from tests.fakes.tool_runner import FakeRunner


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as started:
        yield started


@pytest.fixture
def app(sandbox: Sandbox) -> Iterator[App]:
    with running(DASHSCOPE_BASE_URL=sandbox.base_url, DASHSCOPE_API_KEY=UPSTREAM_KEY) as made:
        yield made


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()
