"""Real servers: the sandbox as upstream, gunicorn with the proxy, nginx with the shipped site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.fakes.canned_upstream import CannedUpstream
from tests.fakes.scripted_model import Chat, ScriptedModel
from tests.kit.client_programs import ServeScript
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, start


@pytest.fixture(scope="session")
def _started() -> list[Sandbox]:
    """The shared sandbox, once a test has asked for it."""
    return []


@pytest.fixture(scope="session")
def upstream(_started: list[Sandbox]) -> Iterator[Sandbox]:
    """The sandbox, in this process, so that tests can look into it."""
    with Sandbox() as sandbox:
        _started.append(sandbox)
        yield sandbox


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_of_other_files(_started: list[Sandbox]) -> None:
    """A fault that the last test of a file had arranged is not for those that ask `upstream`."""
    for each in _started:
        _clear(each)


@pytest.fixture
def sandbox(upstream: Sandbox) -> Sandbox:
    """The shared sandbox, with nothing left of the test before."""
    _clear(upstream)
    return upstream


def _clear(shared: Sandbox) -> None:
    shared.settle()
    shared.reset()


@pytest.fixture(scope="session")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The shared proxy: two workers, a client key, a Qwen-like upstream, short keep-alives."""
    running = start(
        tmp_path_factory.mktemp("proxy"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.5",
            "QWEN_PROXY_IDLE_TIMEOUT": "2",
            "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "3",
        },
    )
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _no_troubles_of_the_test_before(request: pytest.FixtureRequest) -> None:
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").forget_troubles()


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Starts proxies with settings of a test's own, and stops them."""
    started: list[Proxy] = []

    def begin(**environment: str) -> Proxy:
        started.append(start(tmp_path, environment))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


@pytest.fixture
def canned_upstream() -> Iterator[CannedUpstream]:
    """An upstream that answers with bytes of the test's own."""
    upstream = CannedUpstream()
    yield upstream
    upstream.stop()


@pytest.fixture
def serve_script(start_proxy: StartProxy) -> Iterator[ServeScript]:
    """Starts proxies, each in front of a model that a test wrote."""
    with ExitStack() as stack:

        def begin(
            answer: Callable[[Chat], bytes], **environment: str
        ) -> tuple[Proxy, ScriptedModel]:
            model = stack.enter_context(ScriptedModel(answer))
            proxy = start_proxy(
                DASHSCOPE_BASE_URL=model.base_url,
                DASHSCOPE_API_KEY=UPSTREAM_KEY,
                QWEN_PROXY_API_KEYS=CLIENT_KEY,
                **environment,
            )
            return proxy, model

        yield begin
