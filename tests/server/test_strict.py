"""QWEN_PROXY_STRICT=1 refuses what would be lost, and nothing that nobody would miss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
#: It thinks always, whatever it is asked.
THINKER = "qwq-plus"
#: So does this one, which takes `max_completion_tokens` as well.
LIMITED = "kimi-k2.7-code"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Sandbox(models=[MODEL, THINKER, LIMITED]) as upstream:
        proxy = start(
            tmp_path_factory.mktemp("strict"),
            {
                "DASHSCOPE_BASE_URL": upstream.base_url,
                "DASHSCOPE_API_KEY": UPSTREAM_KEY,
                "QWEN_PROXY_STRICT": "1",
            },
        )
        try:
            yield proxy
        finally:
            proxy.stop()


@pytest.fixture
def client(strict: Proxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=strict.base_url, api_key="none", max_retries=0, timeout=10) as made:
        yield made


def test_what_codex_sends_is_answered(client: openai.OpenAI) -> None:
    tools: Any = [
        {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}},
        {"type": "custom", "name": "apply_patch", "description": "Edit files."},
    ]
    raw = client.responses.with_raw_response.create(
        model=MODEL,
        instructions="You are a coding agent.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
        tools=tools,
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"effort": "medium", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=False,
        prompt_cache_key="0199-conversation",
        extra_body={"client_metadata": {"x-codex-installation-id": "1"}},
    )

    assert raw.parse().status == "completed"
    changed = raw.headers["x-qwen-proxy-changed"].split(", ")
    assert "prompt_cache_key:dropped" in changed


def test_hints_are_named_and_losses_refused(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=messages, user="me", store=True, service_tier="auto"
    )

    assert set(raw.headers["x-qwen-proxy-changed"].split(", ")) == {
        "user:dropped",
        "store:dropped",
        "service_tier:dropped",
    }
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=messages, service_tier="flex")
    assert refused.value.param == "service_tier"


@pytest.mark.parametrize("model", [MODEL, THINKER])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_completion_by_a_model_that_always_thinks(
    client: openai.OpenAI, model: str, stream: bool
) -> None:
    """We ask for no thinking; the client did not."""
    if stream:
        chunks = client.completions.create(model=model, prompt="Once upon", stream=True)
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    else:
        text = client.completions.create(model=model, prompt="Once upon").choices[0].text

    assert text


def test_a_client_that_wants_no_thinking_where_it_cannot_be_is_refused(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model=THINKER, prompt="Once upon", extra_body={"enable_thinking": False}
        )

    assert refused.value.param == "enable_thinking"


def test_anthropic_clients_that_say_nothing_of_thinking_are_answered(strict: Proxy) -> None:
    """On a model that always thinks, too: that it should not was our own idea."""
    with anthropic.Anthropic(
        base_url=strict.origin, api_key="none", max_retries=0, timeout=10
    ) as client:
        asked: Any = {
            "model": LIMITED,
            "max_tokens": 500,
            "messages": [{"role": "user", "content": "Hello"}],
        }
        assert client.messages.create(**asked).content
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(**asked, thinking={"type": "disabled"})
