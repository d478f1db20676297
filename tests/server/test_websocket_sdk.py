"""Responses over a WebSocket by the official OpenAI package: connections, and sessions of lanes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.lib.responses_websocket import (
    AsyncResponsesWebSocketSession,
    ResponsesWebSocketLimits,
)
from openai.types.responses import Response

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, Proxy

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0) as made:
        yield made


def finished(connection: Any) -> Response:
    """The next complete response."""
    for event in connection:
        assert event.type != "error", event
        if event.type == "response.completed":
            response: Response = event.response
            return response
    raise AssertionError("the connection ended")


def test_a_conversation_with_a_tool(client: openai.OpenAI, sandbox: Sandbox) -> None:
    with client.responses.connect() as connection:
        connection.response.create(
            model=MODEL, store=False, input="Weather? [[sandbox: tools=1]]", tools=[WEATHER]
        )
        first = finished(connection)
        (call,) = [item for item in first.output if item.type == "function_call"]
        connection.response.create(
            model=MODEL,
            store=False,
            previous_response_id=first.id,
            input=[
                {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
                {"role": "user", "content": "Thanks"},
            ],
            tools=[WEATHER],
            tool_choice="none",
        )
        second = finished(connection)

    assert second.output_text
    assert second.usage is not None
    assert second.usage.total_tokens > 0
    sandbox.settle()
    sent = json.loads(sandbox.chats[-1].body or b"")["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "user"]


def test_a_request_that_is_only_kept(client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(
            model=MODEL, store=False, generate=False, instructions="Be short.", tools=[WEATHER]
        )
        warm = finished(connection)
        connection.response.create(
            model=MODEL, store=False, previous_response_id=warm.id, input="Hello"
        )
        answer = finished(connection)

    assert warm.output == []
    assert answer.output_text


def test_a_refusal(client: openai.OpenAI) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input="x", previous_response_id="resp_gone")
        event = connection.recv()

        assert event.type == "error"
        assert event.error.code == "previous_response_not_found"
        connection.response.steer(input="x", previous_response_id="resp_gone")
        assert connection.recv().type == "response.steer.failed"


def test_lanes_of_a_session(proxy: Proxy, sandbox: Sandbox) -> None:
    limits = ResponsesWebSocketLimits(
        max_lanes=4,
        max_events_per_lane=1000,
        max_events=3000,
        max_bytes_per_lane=1 << 24,
        max_bytes=1 << 25,
        max_response_bytes=None,
    )

    async def talk() -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY) as client,
            client.responses.connect() as connection,
            AsyncResponsesWebSocketSession(connection, limits=limits) as session,
        ):
            lanes = [session.lane(name) for name in ("slow", "quick")]
            texts = ("[[sandbox: slow-first=0.5, text=slow]]", "[[sandbox: text=quick]]")
            for lane, text in zip(lanes, texts, strict=True):
                await lane.send({"type": "response.create", "model": MODEL, "input": text})
            responses = [await lane.get_final_response() for lane in lanes]
            return [response.output_text for response in responses]

    assert asyncio.run(talk()) == ["slow", "quick"]
