"""The response cache with the official SDKs: two workers, and over a restart."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import anthropic
import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
OTHER_KEY = secret("other-client-of-the-cache")
TEXT = "Say it again [[sandbox: chunks=4, interval=0.001]]"
#: Each call has a connection of its own, so that several meet both workers.
CLOSE = {"Connection": "close"}
CALLS = 4


def of_chat(client: openai.OpenAI, stream: bool, **more: Any) -> str:
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": TEXT}],
        "temperature": 0,
        **more,
    }
    if not stream:
        return str(client.chat.completions.create(**asked).choices[0].message.content)
    with client.chat.completions.create(stream=True, **asked) as chunks:
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def of_responses(client: openai.OpenAI, stream: bool, **more: Any) -> str:
    asked: Any = {"model": MODEL, "input": TEXT, "temperature": 0, **more}
    if not stream:
        return str(client.responses.create(**asked).output_text)
    with client.responses.create(stream=True, **asked) as events:
        return "".join(e.delta for e in events if e.type == "response.output_text.delta")


def of_messages(client: anthropic.Anthropic, stream: bool) -> str:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 500,
        "extra_body": {"temperature": 0},  # this SDK has no such argument any more
        "messages": [{"role": "user", "content": TEXT}],
    }
    if not stream:
        return str(getattr(client.messages.create(**asked).content[-1], "text", ""))
    with client.messages.stream(**asked) as events:
        return events.get_final_text()


def client_of(proxy: Proxy, key: str = CLIENT_KEY) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=proxy.base_url, api_key=key, max_retries=0, timeout=20, default_headers=CLOSE
    )


def everything(proxy: Proxy) -> dict[str, set[str]]:
    """What all dialects say, whole and streamed, several times."""
    told: dict[str, set[str]] = {"chat": set(), "responses": set(), "messages": set()}
    with (
        client_of(proxy) as client,
        anthropic.Anthropic(
            base_url=proxy.origin, api_key=CLIENT_KEY, max_retries=0, default_headers=CLOSE
        ) as other,
    ):
        for number in range(CALLS):
            stream = number % 2 == 1
            told["chat"].add(of_chat(client, stream))
            told["responses"].add(of_responses(client, stream))
            told["messages"].add(of_messages(other, stream))
    return told


def cache_of(answer: Any) -> str:
    """The header of an answer."""
    return str(answer.headers.get("x-qwen-proxy-cache"))


def test_answers_of_both_workers_and_of_the_server_before(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    settings = {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": f"{CLIENT_KEY},{OTHER_KEY}",
        "QWEN_PROXY_WORKERS": "2",
        "QWEN_PROXY_RESPONSE_CACHE": "1h",
    }
    proxy = start_proxy(**settings)

    told = everything(proxy)

    assert all(len(texts) == 1 and "".join(texts) for texts in told.values()), told
    # What the dialects translate into is not the same request in each.
    asked = len(sandbox.chats)
    assert asked <= 3
    proxy.stop()
    proxy = start_proxy(**settings)
    assert everything(proxy) == told
    assert len(sandbox.chats) == asked

    def chat(client: openai.OpenAI, **headers: str) -> Any:
        return client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": TEXT}],
            temperature=0,
            extra_headers=headers,
        )

    def vectors(client: openai.OpenAI) -> Any:
        return client.embeddings.with_raw_response.create(model="text-embedding-v4", input="a")

    with client_of(proxy) as client, client_of(proxy, OTHER_KEY) as other:
        assert cache_of(chat(client)) == "hit"
        assert cache_of(chat(client, **{"Cache-Control": "no-cache"})) == "miss"
        assert cache_of(chat(other)) == "miss"
        assert [cache_of(vectors(client)) for _ in range(2)] == ["miss", "hit"]
    state = proxy.home / ".local/state/qwen-proxy/database"
    assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}
    with closing(sqlite3.connect(state / "state.sqlite3")) as opened:
        rows = opened.execute("SELECT owner, count(*) FROM cached_answers GROUP BY 1").fetchall()
    assert len(rows) == 2
