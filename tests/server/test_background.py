"""Responses in the background, on a real server: two workers, the official package, and deaths."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai.types.responses import Response

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, has_chats, start
from tests.kit.servers import wait_until

pytestmark = pytest.mark.server

MODEL = "qwen-plus"
OTHER_KEY = "another-client-of-the-background"


def environment(sandbox: Sandbox, **more: str) -> dict[str, str]:
    return {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": f"{CLIENT_KEY},{OTHER_KEY}",
        "QWEN_PROXY_WORKERS": "2",
        **more,
    }


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("background"),
        environment(upstream, QWEN_PROXY_BATCH_HOST=upstream.origin + "/batch/compatible-mode/v1"),
    )
    yield running
    running.stop()


def client_of(proxy: Proxy, key: str = CLIENT_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key=key, max_retries=0, timeout=20)


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    proxy.forget_troubles()
    with client_of(proxy) as made:
        yield made


def begin(client: openai.OpenAI, **members: Any) -> Response:
    made: Response = client.responses.create(model=MODEL, input="Hello", background=True, **members)
    return made


def ended(client: openai.OpenAI, id: str) -> Response:
    """The response when it has ended."""

    def look() -> Response | None:
        found = client.responses.retrieve(id)
        return None if found.status in ("queued", "in_progress") else found

    return cast("Response", wait_until(look, "the end of the response"))


def database(proxy: Proxy) -> Path:
    return proxy.home / ".local/state/qwen-proxy/database/state.sqlite3"


def makers(proxy: Proxy) -> set[int]:
    """The workers that make a response now."""
    with closing(sqlite3.connect(database(proxy))) as opened:
        rows = opened.execute(
            "SELECT worker FROM background_jobs WHERE status = 'running'"
        ).fetchall()
    return {int(worker.split("/")[2]) for (worker,) in rows}


def is_idle(sandbox: Sandbox) -> bool:
    return all(each.outcome != "open" for each in sandbox.requests)


def test_created_polled_complete(client: openai.OpenAI, proxy: Proxy, sandbox: Sandbox) -> None:
    sandbox.control(faults={"chat": "slow-headers=1"})
    began = time.monotonic()
    first = begin(client)
    assert time.monotonic() - began < 1
    assert first.status == "queued"

    seen = set()

    def look() -> Response | None:
        # Each from a connection of its own, so that either worker answers.
        with client_of(proxy) as fresh:
            found = fresh.responses.retrieve(first.id)
        seen.add(found.status)
        return found if found.status == "completed" else None

    done: Response = wait_until(look, "the response")

    assert seen >= {"in_progress", "completed"}
    assert done.output_text
    assert done.usage
    assert done.usage.total_tokens
    follow = client.responses.create(model=MODEL, input="And?", previous_response_id=done.id)
    assert follow.status == "completed"
    assert proxy.wait_for_call(done.id)["method"] == "BACKGROUND"


def test_a_cancel_ends_the_upstream_call(
    client: openai.OpenAI, proxy: Proxy, sandbox: Sandbox
) -> None:
    """Within a second, whichever worker gets it."""
    for _ in range(4):
        sandbox.reset()
        sandbox.control(faults={"chat": "hang"})
        first = begin(client)
        wait_until(lambda: has_chats(sandbox, 1), "the call")
        with client_of(proxy) as fresh:
            assert fresh.responses.cancel(first.id).status == "cancelled"
            cancelled_s = time.monotonic()
            wait_until(lambda: is_idle(sandbox), "the end of the call")
            assert time.monotonic() - cancelled_s < 1
            assert fresh.responses.cancel(first.id).status == "cancelled"
            assert fresh.responses.retrieve(first.id).status == "cancelled"
        assert not makers(proxy)


def test_another_key(client: openai.OpenAI, proxy: Proxy, sandbox: Sandbox) -> None:
    id = begin(client).id
    with client_of(proxy, OTHER_KEY) as other:
        for ask in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(id)
    assert ended(client, id).status == "completed"
    client.responses.delete(id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id)


def test_a_failure_of_the_upstream(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(faults={"chat": "drop"})
    failed = ended(client, begin(client).id)
    assert failed.status == "failed"
    assert failed.error
    assert failed.error.code == "server_error"


def test_a_completion_window_is_half_the_price(client: openai.OpenAI, sandbox: Sandbox) -> None:
    first = begin(client, background_options={"completion_window": "2h"})
    done = ended(client, first.id)

    assert first.service_tier == "default"
    assert (done.status, done.service_tier) == ("completed", "flex")
    assert done.model_extra
    assert done.model_extra["qwen_proxy"]["account"] == "dashscope-flex"
    assert [each.route for each in sandbox.requests if "chat" in each.route] == ["batch-chat"]


def test_a_worker_is_killed(client: openai.OpenAI, proxy: Proxy, sandbox: Sandbox) -> None:
    """The others tell what happened, and the upstream is not asked again."""
    sandbox.control(faults={"chat": "hang"})
    id = begin(client).id
    wait_until(lambda: has_chats(sandbox, 1), "the call")
    (maker,) = makers(proxy)
    os.kill(maker, signal.SIGKILL)

    with client_of(proxy) as fresh:
        failed = wait_until(lambda: told(fresh, id), "the end", within_s=15)
    assert failed.status == "failed"
    assert "process that made this response ended" in failed.error.message
    assert len(sandbox.chats) == 1


def told(client: openai.OpenAI, id: str) -> Response | None:
    """The response if it has ended; None also while a worker dies."""
    try:
        found = client.responses.retrieve(id)
    except openai.APIConnectionError:
        return None
    return None if found.status in ("queued", "in_progress") else found


def test_one_that_nobody_polls(client: openai.OpenAI, proxy: Proxy, sandbox: Sandbox) -> None:
    """Its place is free for the next, and it is there whenever somebody asks."""
    ids = [begin(client).id for _ in range(20)]
    for id in ids:
        assert proxy.wait_for_call(id)["outcome"] == "complete"
    wait_until(lambda: not makers(proxy), "an empty queue")
    assert client.responses.retrieve(ids[0]).status == "completed"


def test_a_restart(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    """What runs goes on for the time of a stop, then fails; what waits is made after the start."""
    settings = environment(
        sandbox,
        QWEN_PROXY_WORKERS="1",
        QWEN_PROXY_BACKGROUND="1",
        QWEN_PROXY_BACKGROUND_PER_KEY="2",
        QWEN_PROXY_GRACEFUL_TIMEOUT="1",
    )
    sandbox.control(faults={"chat": "hang"})
    first = start_proxy(**settings)
    with client_of(first) as client:
        running = begin(client).id
        wait_until(lambda: has_chats(sandbox, 1), "the call")
        waiting = begin(client).id
        with pytest.raises(openai.RateLimitError, match="PER_KEY"):
            begin(client)
    began = time.monotonic()
    assert first.stop() == 0
    assert "WARNING" not in first.log.read_text()
    assert 0.9 < time.monotonic() - began < 5
    wait_until(lambda: is_idle(sandbox), "the end of the call")

    sandbox.reset()
    second = start_proxy(**settings)
    with client_of(second) as client:
        failed = client.responses.retrieve(running)
        assert failed.status == "failed"
        assert failed.error
        assert "stopped or restarted" in failed.error.message
        assert ended(client, waiting).status == "completed"
    assert len(sandbox.chats) == 1


def test_a_stop_waits_for_one_that_soon_ends(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    sandbox.control(faults={"chat": "slow-headers=0.6"})
    first = start_proxy(**environment(sandbox))
    with client_of(first) as client:
        id = begin(client).id
        wait_until(lambda: has_chats(sandbox, 1), "the call")
    first.stop()
    with client_of(start_proxy(**environment(sandbox))) as client:
        assert client.responses.retrieve(id).status == "completed"


def test_the_machine_fails(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    """All processes die at once."""
    sandbox.control(faults={"chat": "hang"})
    first = start_proxy(**environment(sandbox))
    with client_of(first) as client:
        id = begin(client).id
        wait_until(lambda: has_chats(sandbox, 1), "the call")
    for pid in (first.process.pid, *first.workers()):
        os.kill(pid, signal.SIGKILL)
    first.process.wait()
    with client_of(start_proxy(**environment(sandbox))) as client:
        assert ended(client, id).status == "failed"
