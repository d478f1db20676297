"""A model that turns out to read no pictures: asked once as it is, then without them.

With a real server of two workers, in each dialect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import Proxy, start
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

PICTURE = "data:image/png;base64,iVBORw0KGgo="
MODEL = "new-model"
LEFT_OUT = "A picture was left out here"


@pytest.fixture(scope="module", params=["foreign", "qwen"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, Sandbox]]:
    with Sandbox(models=[MODEL]) as upstream:
        host = upstream.base_url.split("//")[1].split(":")[0]
        families = f"{host}=dashscope" if request.param == "qwen" else ""
        proxy = start(
            tmp_path_factory.mktemp(request.param),
            {
                "QWEN_UPSTREAM_BASE_URL": upstream.base_url,
                "QWEN_UPSTREAM_API_KEY": secret("text-only"),
                "QWEN_PROXY_WORKERS": "2",
                "QWEN_PROXY_HOST_FAMILIES": families,
            },
        )
        yield proxy, upstream
        proxy.stop()


@pytest.fixture
def world(running: tuple[Proxy, Sandbox]) -> tuple[Proxy, Sandbox]:
    proxy, upstream = running
    upstream.settle()
    upstream.reset()
    upstream.control(faults={"chat": "text-only"})
    proxy.forget_troubles()
    return running


def ask(proxy: Proxy, dialect: str, stream: bool) -> tuple[str, str]:
    """The answer's text, and what was changed, by the official SDKs."""
    if dialect == "messages":
        return _messages(proxy, stream)
    with openai.OpenAI(base_url=proxy.base_url, api_key="none", max_retries=0) as client:
        if dialect == "responses":
            content = [
                {"type": "input_text", "text": "What is it?"},
                {"type": "input_image", "image_url": PICTURE},
            ]
            items: Any = [{"role": "user", "content": content}]
            raw: Any = client.responses.with_raw_response.create(
                model=MODEL, input=items, stream=stream
            )
            if not stream:
                return raw.parse().output_text, raw.headers["x-qwen-proxy-changed"]
            events: Any = raw.parse()
            text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
            return text, raw.headers["x-qwen-proxy-changed"]
        parts: Any = [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": PICTURE}},
        ]
        answer: Any = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": parts}], stream=stream
        )
        changed = answer.headers["x-qwen-proxy-changed"]
        if not stream:
            return answer.parse().choices[0].message.content, changed
        return "".join(
            c.choices[0].delta.content or "" for c in answer.parse() if c.choices
        ), changed


def _messages(proxy: Proxy, stream: bool) -> tuple[str, str]:
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE.split(",")[1]}
    content: Any = [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]
    with anthropic.Anthropic(base_url=proxy.origin, api_key="none", max_retries=0) as client:
        raw: Any = client.messages.with_raw_response.create(
            model=MODEL,
            max_tokens=100,
            messages=[{"role": "user", "content": content}],
            stream=stream,
        )
        changed = raw.headers["x-qwen-proxy-changed"]
        if not stream:
            return raw.parse().content[-1].text, changed
        deltas = (e.delta for e in raw.parse() if e.type == "content_block_delta")
        return "".join(delta.text for delta in deltas if delta.type == "text_delta"), changed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_the_request_is_repeated_without_the_picture(
    world: tuple[Proxy, Sandbox], dialect: str, stream: bool
) -> None:
    proxy, upstream = world

    text, changed = ask(proxy, dialect, stream)

    assert text
    assert "messages:image-left-out" in changed or "input:image-left-out" in changed
    upstream.settle()
    first, second = upstream.chats
    assert "image_url" in str(first.body)
    assert LEFT_OUT in str(second.body)


def test_what_one_worker_learned_the_other_knows(world: tuple[Proxy, Sandbox]) -> None:
    proxy, upstream = world
    for _ in range(8):  # each on a connection of its own, so both workers are asked
        ask(proxy, "chat", False)
    upstream.settle()

    refused = [chat for chat in upstream.chats if "image_url" in str(chat.body)]

    assert len(refused) == 1
    assert len(upstream.chats) == 9


def test_a_refusal_of_something_else_is_not_blamed_on_the_picture(
    world: tuple[Proxy, Sandbox],
) -> None:
    """The host refuses the second request, too: the model may well read pictures."""
    proxy, upstream = world
    words = "Unexpected item type in content."
    upstream.control(faults={"chat": f"error=invalid_parameter_error, message={words}"})
    with openai.OpenAI(base_url=proxy.base_url, api_key="none", max_retries=0) as client:
        parts: Any = [{"type": "image_url", "image_url": {"url": PICTURE}}]
        with pytest.raises(openai.BadRequestError, match="Unexpected item type"):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": parts}]
            )
    upstream.settle()
    assert len(upstream.chats) == 2
