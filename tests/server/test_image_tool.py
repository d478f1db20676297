"""The Responses tool `image_generation` of the running server, by the official OpenAI package."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.raw_client import Exchange

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
TOOL: Any = {"type": "image_generation", "model": "qwen-image-3.0"}
OF_TASKS: Any = {"type": "image_generation", "model": "wan2.5-t2i-preview"}


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=15
    ) as made:
        yield made


def prompt(text: str) -> str:
    """Have the sandbox ask for a picture with this prompt."""
    return f"[[sandbox: tool-args={quote(json.dumps({'prompt': text}))}]]"


def routes(sandbox: Sandbox) -> list[str]:
    return [record.route for record in sandbox.requests]


def test_a_whole_response_and_the_next_one(client: openai.OpenAI, sandbox: Sandbox) -> None:
    first = client.responses.create(model=MODEL, input=prompt("a cat"), tools=[TOOL])

    picture = first.output[0]
    assert picture.type == "image_generation_call"
    assert base64.b64decode(picture.result or "").startswith(b"\x89PNG")
    assert "The picture was made" in first.output_text
    second = client.responses.create(
        model=MODEL, input="Thanks", previous_response_id=first.id, tools=[TOOL], tool_choice="none"
    )
    assert "Thanks" in second.output_text
    sandbox.settle()
    assert (picture.result or "-") not in (sandbox.chats[-1].body or b"").decode()
    stored = client.responses.retrieve(first.id)
    assert stored.output[0] == picture


def test_a_stream(client: openai.OpenAI, sandbox: Sandbox) -> None:
    kinds = []
    with client.responses.stream(model=MODEL, input=prompt("a cat"), tools=[TOOL]) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_response()

    made = [kind for kind in kinds if kind.startswith("response.image_generation_call")]
    assert [kind.split(".")[-1] for kind in made] == ["in_progress", "generating", "completed"]
    assert [item.type for item in final.output] == ["image_generation_call", "message"]
    assert final.usage is not None
    assert final.usage.output_tokens > 0


def test_keep_alives_while_a_picture_is_made(proxy: Proxy, sandbox: Sandbox) -> None:
    body = {
        "model": MODEL,
        "stream": True,
        "input": prompt("a cat [[sandbox: slow-first=1.2]]"),
        "tools": [TOOL],
    }
    with Exchange(proxy.port, body, path="/v1/responses", key=CLIENT_KEY) as exchange:
        before = exchange.read_until(b"image_generation_call.generating")
        data = exchange.read_until(b"image_generation_call.completed")
        exchange.read_until(b"event: response.completed")

    assert b": keep-alive" in data[len(before) :]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("tool", [TOOL, OF_TASKS], ids=["at-once", "by-a-task"])
def test_a_client_that_leaves_stops_the_picture(
    proxy: Proxy, sandbox: Sandbox, tool: Any, stream: bool
) -> None:
    spec = "slow-headers=8" if tool is TOOL else "task-looks=99"
    text = prompt(f"a cat [[sandbox: {spec}]]")
    body = {"model": MODEL, "stream": stream, "input": text, "tools": [tool]}
    exchange = Exchange(
        proxy.port, body, path="/v1/responses", key=CLIENT_KEY, headers={"X-Request-Id": "leaves"}
    )
    wanted = "generation" if tool is TOOL else "tasks"
    assert sandbox.wait_until(lambda: wanted in routes(sandbox), 5)
    if stream:
        exchange.read_until(b"image_generation_call.generating")
    exchange.close()

    if tool is TOOL:
        assert sandbox.wait_until(
            lambda: any(
                r.route == "generation" and r.outcome == "client_gone" for r in sandbox.requests
            ),
            5,
        )
    else:
        assert sandbox.wait_until(
            lambda: any(record.path.endswith("/cancel") for record in sandbox.requests), 5
        )
    time.sleep(0.15)
    assert len(sandbox.chats) == 1
    (call,) = [line for line in proxy.call_lines() if line["request_id"] == "leaves"][-1:]
    assert call["outcome"] == "client_gone"
    assert "pictures" not in call


def test_over_a_websocket(client: openai.OpenAI, sandbox: Sandbox) -> None:
    with client.responses.connect() as connection:
        connection.response.create(
            model=MODEL, store=False, input=prompt("a cat"), tools=[TOOL], tool_choice=TOOL
        )
        first = next(e.response for e in connection if e.type == "response.completed")
        connection.response.create(
            model=MODEL,
            store=False,
            previous_response_id=first.id,
            input=f"[[sandbox: tool-args={quote(json.dumps({'prompt': 'x', 'action': 'edit'}))}]]",
            tools=[TOOL],
        )
        second = next(e.response for e in connection if e.type == "response.completed")

    first_made, second_made = first.output[0], second.output[0]
    assert first_made.type == second_made.type == "image_generation_call"
    assert second_made.status == "completed"
    sandbox.settle()
    made = [r for r in sandbox.requests if r.route == "generation"]
    assert (first_made.result or "-") in (made[-1].body or b"").decode()
