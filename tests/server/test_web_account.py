"""Web tokens at a running server: the official package, and clients that leave."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qwen_wsgi.protocol.web.token import WebToken, packed
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.native.images import png
from tests.kit.proxy import Proxy
from tests.kit.proxy import start as start_proxy
from tests.kit.raw_client import Exchange, chat

pytestmark = pytest.mark.server

#: Behind the end of a call its chat is gone within this.
GONE_S = 5.0


@pytest.fixture(scope="module")
def site() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def proxy(site: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start_proxy(
        tmp_path_factory.mktemp("web"),
        {
            "QWEN_PROXY_WEB": "1",
            "QWEN_WEB_BASE_URL": site.origin,
            "QWEN_PROXY_WORKERS": "1",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.5",
        },
    )
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _nothing_of_the_test_before(site: Sandbox, proxy: Proxy) -> None:
    site.settle()
    site.reset()
    proxy.forget_troubles()


def token_of(site: Sandbox, user: str) -> str:
    return packed(WebToken(site.web.token(user), "a=" + "x" * 12_000))


def client_of(proxy: Proxy, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key=token, max_retries=0, timeout=15)


def is_gone(site: Sandbox, count: int) -> bool:
    """Whether all chats are deleted, so many, within the time."""
    end_s = time.monotonic() + GONE_S
    while time.monotonic() < end_s:
        if not site.web.chats and len(site.web.deleted) == count:
            return True
        time.sleep(0.02)
    return False


def test_the_official_package_gets_a_stream_and_a_whole_answer(proxy: Proxy, site: Sandbox) -> None:
    with client_of(proxy, token_of(site, "ann")) as client:
        messages: Any = [{"role": "user", "content": "hello"}]
        whole: Any = client.chat.completions.create(model="qwen3-max", messages=messages)
        stream: Any = client.chat.completions.create(
            model="qwen3-max-thinking",
            messages=messages,
            stream=True,
        )
        pieces = [each.choices[0].delta.content or "" for each in stream if each.choices]
        said = client.responses.create(model="qwen3-max", input="hello")

    expected = "[sandbox] You said: hello"
    assert whole.choices[0].message.content.strip() == expected
    assert "".join(pieces).strip() == expected
    assert said.output_text.strip() == expected
    assert is_gone(site, 3)


@pytest.mark.parametrize(
    ("route", "spec", "stream"),
    [
        pytest.param("web-chats", "slow-headers=0.5", True, id="while-the-chat-is-opened"),
        pytest.param("web-chat", "slow-headers=9", True, id="before-the-first-event"),
        pytest.param("web-chat", "slow-headers=9", False, id="before-a-whole-answer"),
        pytest.param("web-chat", "interval=0.3", True, id="in-the-middle"),
        pytest.param("web-chat", "stall-after=3", False, id="in-a-stall-of-a-whole-answer"),
    ],
)
def test_the_chat_of_a_client_that_leaves_is_deleted(
    proxy: Proxy, site: Sandbox, route: str, spec: str, stream: bool
) -> None:
    site.control(faults={route: spec})
    exchange = Exchange(
        proxy.port,
        {**chat("hello there all of you", stream=stream), "model": "qwen3-max"},
        key=token_of(site, "ann"),
    )
    assert site.wait_until(lambda: any(each.route == route for each in site.requests), 5)
    if spec.startswith("interval"):
        exchange.read_until(b"sandbox")
    else:
        time.sleep(0.1)
    exchange.close()

    assert is_gone(site, 1)


def test_users_at_the_same_time_never_see_one_another(proxy: Proxy, site: Sandbox) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        with client_of(proxy, token_of(site, f"user-{number}")) as client:
            answer = client.chat.completions.create(
                model="qwen3-max", messages=[{"role": "user", "content": f"I am {number}"}]
            )
            answers[number] = answer.choices[0].message.content or ""

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert answers == {n: f"[sandbox] You said: I am {n} " for n in range(8)}
    assert is_gone(site, 8)
    assert sorted(site.web.deleted.values()) == [f"user-{number}" for number in range(8)]


def test_nothing_of_a_token_is_in_a_file(proxy: Proxy, site: Sandbox) -> None:
    token = token_of(site, "zoe")
    with client_of(proxy, token) as client:
        client.responses.create(model="qwen3-max", input="hello")
    assert is_gone(site, 1)

    session = site.web.token("zoe")[:60].encode()
    files = [each for each in proxy.home.rglob("*") if each.is_file()]
    assert files
    for path in (*files, proxy.log):
        data = path.read_bytes()
        assert token.encode()[:200] not in data, path
        assert session not in data, path


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_official_package_s_pictures_edits_and_videos(proxy: Proxy, site: Sandbox) -> None:
    cat = png("cat", 8, 8)
    url = "data:image/png;base64," + base64.b64encode(cat).decode()
    content: Any = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    with client_of(proxy, token_of(site, "ann")) as client:
        client.chat.completions.create(
            model="qwen3-max", messages=[{"role": "user", "content": content}]
        )
        made: Any = client.images.generate(model="qwen3-max-image", prompt="a cat", n=2)
        edited: Any = client.images.edit(
            model="qwen3-max-image",
            image=("cat.png", cat, "image/png"),
            prompt="a hat",
            response_format="b64_json",
        )
        video = client.videos.create_and_poll(
            model="qwen3-max-video", prompt="a dog runs", poll_interval_ms=100
        )
        film = client.videos.download_content(video.id).read()

    assert len({each.url for each in made.data}) == 2
    assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
    assert video.status == "completed"
    assert b"ftyp" in film
    # The chat's picture was not uploaded again for the edit.
    assert [(user, data) for user, _, data in site.web.objects.values()] == [("ann", cat)]
    assert is_gone(site, 5)


@pytest.mark.parametrize("route", ["web-object", "web-chat"])
def test_no_chat_is_left_by_a_client_that_leaves_while_a_picture_is_made(
    proxy: Proxy, site: Sandbox, route: str
) -> None:
    site.control(faults={route: "slow-headers=9"})
    url = "data:image/png;base64," + base64.b64encode(png("cat", 8, 8)).decode()
    body = {"model": "qwen3-max-image", "prompt": "a hat", "image": url}
    exchange = Exchange(proxy.port, body, path="/v1/images/generations", key=token_of(site, "ann"))
    assert site.wait_until(lambda: any(each.route == route for each in site.requests), 5)
    time.sleep(0.1)
    exchange.close()

    assert is_gone(site, 1 if route == "web-chat" else 0)


def test_the_chat_of_a_killed_worker_goes_with_the_next_call_of_its_user(
    proxy: Proxy, site: Sandbox
) -> None:
    token = token_of(site, "ann")
    exchange = Exchange(
        proxy.port,
        {**chat("[[sandbox: stall-after=3]] one two three", stream=True), "model": "qwen3-max"},
        key=token,
    )
    exchange.read_until(b"sandbox")
    (worker,) = proxy.workers()
    os.kill(worker, signal.SIGKILL)
    exchange.close()
    assert site.wait_until(lambda: proxy.workers() not in (set(), {worker}), 15)
    assert len(site.web.chats) == 1

    with client_of(proxy, token_of(site, "bob")) as client:
        client.models.list()
    with client_of(proxy, token) as client:
        client.chat.completions.create(
            model="qwen3-max", messages=[{"role": "user", "content": "hello"}]
        )
    assert is_gone(site, 2)


def test_a_header_of_megabytes_is_refused(proxy: Proxy) -> None:
    with Exchange(proxy.port, chat("x"), key="H4sI" + "A" * 1_000_000) as exchange:
        head = exchange.read_until(b"\r\n\r\n")
    assert b" 4" in head.split(b"\r\n")[0]
