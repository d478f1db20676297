"""Two real servers with one Redis: what one stores both have, also after troubles of Redis."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.secrets import secret
from tests.kit.servers import REPO, wait_until

pytestmark = [pytest.mark.server, needs_redis]

MODEL = "qwen3.8-max"
STATE_KEY = secret("state-key-of-servers") + "-0123456789abcdef"
#: What is told by one box is known by the other.
SOON_S = 3.0


class Boxes(NamedTuple):
    a: Proxy
    b: Proxy
    redis: RedisServer


@pytest.fixture(scope="module")
def boxes(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boxes]:
    with (
        tempfile.TemporaryDirectory(prefix="boxes-") as name,
        RedisServer(Path(name)) as redis,
    ):
        environ = {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_REDIS_URL": redis.url,
            "QWEN_PROXY_STATE_KEY": STATE_KEY,
            "QWEN_PROXY_RETRY_BUDGET": "0",
        }
        places = [tmp_path_factory.mktemp(name) for name in ("box-a", "box-b")]
        with ThreadPoolExecutor(2) as pool:
            a, b = pool.map(lambda place: start(place, environ), places)
            yield Boxes(a, b, redis)
            list(pool.map(Proxy.stop, (a, b)))


@pytest.fixture(autouse=True)
def _no_troubles_of_the_test_before() -> None:
    """The shared proxy is not used here."""


def sdk(proxy: Proxy) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key="none", max_retries=0, timeout=20)


def usage(proxy: Proxy, redis: RedisServer) -> Any:
    """What `qwen-proxy usage` prints, as the server's user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "usage", "--by", "endpoint", "--json"],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(proxy.home),
            "PYTHONPATH": str(REPO),
            "PYTHONDONTWRITEBYTECODE": "1",
            "QWEN_PROXY_REDIS_URL": redis.url,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_conversation_goes_over_both(boxes: Boxes) -> None:
    with sdk(boxes.a) as a, sdk(boxes.b) as b:
        first = a.responses.create(model=MODEL, input="one")
        second = b.responses.create(model=MODEL, input="two", previous_response_id=first.id)
        events = [
            *a.responses.create(
                model=MODEL, input="three", previous_response_id=second.id, stream=True
            )
        ]
        assert events[-1].type == "response.completed"
        third = events[-1].response
        assert b.responses.retrieve(third.id).output_text == third.output_text

        b.responses.delete(first.id)
        wait_until(lambda: not has(a, first.id), "it is gone on the other box", within_s=SOON_S)
        with pytest.raises(openai.BadRequestError, match="is gone"):
            b.responses.create(model=MODEL, input="four", previous_response_id=second.id)


def has(client: openai.OpenAI, id: str) -> bool:
    try:
        client.responses.retrieve(id)
    except openai.NotFoundError:
        return False
    return True


def test_one_in_the_background_is_cancelled_by_way_of_the_other(boxes: Boxes) -> None:
    with sdk(boxes.a) as a, sdk(boxes.b) as b:
        first = a.responses.create(
            model=MODEL, input="hello [[sandbox: slow-first=20]]", background=True
        )
        assert b.responses.retrieve(first.id).status in ("queued", "in_progress")
        assert b.responses.cancel(first.id).status == "cancelled"
        assert a.responses.retrieve(first.id).status == "cancelled"


def test_what_one_box_learns_of_an_account_the_other_knows(boxes: Boxes, sandbox: Sandbox) -> None:
    with sdk(boxes.a) as a, sdk(boxes.b) as b:
        sandbox.control(next=[{"spec": "throttle, retry-after=2", "route": "chat"}])
        assert not answers(a)
        wait_until(lambda: not answers(b), "the pause is known", within_s=SOON_S)
        wait_until(lambda: answers(b), "the pause is over", within_s=SOON_S)


def answers(client: openai.OpenAI) -> bool:
    try:
        chat(client)
    except (openai.RateLimitError, openai.InternalServerError):
        return False
    return True


def chat(client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])


def test_usage_is_that_of_both(boxes: Boxes) -> None:
    with sdk(boxes.a) as a, sdk(boxes.b) as b:
        for client in (a, b, b):
            client.embeddings.create(model="text-embedding-v4", input="x")

    def counted(proxy: Proxy) -> bool:
        with urllib.request.urlopen(proxy.origin + "/v1/usage", timeout=5) as answer:
            found = json.load(answer)["today"]
        calls = {row["key"]: row["calls"] for row in found["rows"]}
        told = {"counted": 2, "others_unknown": False}
        return bool(found["boxes"] == told and calls.get("text-embedding-v4") == 3)

    for proxy in (boxes.a, boxes.b):
        wait_until(partial(counted, proxy), "the calls of both are told", within_s=20)
    found = usage(boxes.a, boxes.redis)
    calls = {row["key"]: row["calls"] for row in found["rows"]}
    assert (found["boxes"]["counted"], calls["/v1/embeddings"]) == (2, 3)


@pytest.mark.parametrize("trouble", ["killed", "stopped", "flushed"])
def test_no_call_fails_while_redis_has_troubles(
    boxes: Boxes, sandbox: Sandbox, trouble: str
) -> None:
    failures: list[Exception] = []
    stop = threading.Event()

    def calls(proxy: Proxy) -> None:
        before = None
        with sdk(proxy) as client:
            while not stop.is_set():
                try:
                    chat(client)
                    # A conversation on one box alone goes on.
                    before = client.responses.create(
                        model=MODEL, input="x", previous_response_id=before
                    ).id
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=calls, args=(each,)) for each in (boxes.a, boxes.b)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    meet(boxes.redis, trouble)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == []

    with sdk(boxes.a) as a, sdk(boxes.b) as b:
        made = a.responses.create(model=MODEL, input="after it")
        wait_until(lambda: known(b, made.id), "it is shared again", within_s=5 * SOON_S)


def known(client: openai.OpenAI, id: str) -> bool:
    try:
        return has(client, id)
    except openai.InternalServerError:
        return False


def meet(redis: RedisServer, trouble: str) -> None:
    if trouble == "flushed":
        redis.command("FLUSHALL")
        time.sleep(0.4)
    elif trouble == "stopped":
        redis.send(signal.SIGSTOP)
        time.sleep(0.8)
        redis.send(signal.SIGCONT)
    else:
        redis.kill()
        time.sleep(0.4)
        redis.start()
