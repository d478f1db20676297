"""A conversation goes on after a call of a tool that was cut, or that was no JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qwen_wsgi.protocol.translation.arguments import UNPARSED
from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, Proxy

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
CUT = '{"path": "a.py", "content": "def f('
FUNCTION: Any = {
    "name": "write",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
}


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=10
    ) as made:
        yield made


def sent_arguments(sandbox: Sandbox) -> list[Any]:
    """The arguments of the calls in the history that the upstream got last, parsed."""
    sandbox.settle()
    asked = json.loads(sandbox.chats[-1].body or b"")
    calls = [call for each in asked["messages"] for call in each.get("tool_calls") or ()]
    return [json.loads(call["function"]["arguments"]) for call in calls]


def history(arguments: str) -> list[Any]:
    """A chat with a call of the tool and its answer."""
    call = {"id": "1", "type": "function", "function": {"name": "write", "arguments": arguments}}
    return [
        {"role": "user", "content": "Write it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "The arguments were no JSON."},
    ]


def test_without_the_proxy_the_host_refuses_it(sandbox: Sandbox) -> None:
    with (
        openai.OpenAI(base_url=sandbox.base_url, api_key="any", max_retries=0) as direct,
        pytest.raises(openai.BadRequestError, match="must be in JSON format"),
    ):
        direct.chat.completions.create(model=MODEL, messages=history(CUT))


@pytest.mark.parametrize(
    ("arguments", "sent"), [(CUT, {UNPARSED: CUT}), ("", {}), ('{"path": "a"}', {"path": "a"})]
)
def test_a_chat_goes_on(
    client: openai.OpenAI, sandbox: Sandbox, arguments: str, sent: dict[str, Any]
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=history(arguments),
        tools=[{"type": "function", "function": FUNCTION}],
        parallel_tool_calls=True,
    )

    assert raw.parse().choices[0].message.content
    changed = raw.headers.get("x-qwen-proxy-changed")
    assert changed == (None if "path" in sent else "messages:arguments-made-json")
    assert sent_arguments(sandbox) == [sent]


CUT_CALL = "Write it. [[sandbox: tools=1, tool-bad-json, finish=length]]"


def is_cut(arguments: str) -> bool:
    try:
        json.loads(arguments)
    except ValueError:
        return True
    return False


def test_a_chat_goes_on_from_a_call_that_was_cut(client: openai.OpenAI, sandbox: Sandbox) -> None:
    tools: Any = [{"type": "function", "function": FUNCTION}]
    messages: list[Any] = [{"role": "user", "content": CUT_CALL}]
    said = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
    message = said.choices[0].message
    calls: Any = message.tool_calls
    (call,) = calls
    assert is_cut(call.function.arguments)

    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "?"}]
    again = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)

    assert again.choices[0].message.content
    assert sent_arguments(sandbox) == [{UNPARSED: call.function.arguments}]


@pytest.mark.parametrize("stored", [True, False], ids=["by its id", "by its items"])
def test_a_response_goes_on_from_a_call_that_was_cut(
    client: openai.OpenAI, sandbox: Sandbox, stored: bool
) -> None:
    tools: Any = [{"type": "function", **FUNCTION}]
    first = client.responses.create(model=MODEL, tools=tools, input=CUT_CALL, store=stored)
    call = next(item for item in first.output if item.type == "function_call")
    assert first.status == call.status == "incomplete"
    assert is_cut(call.arguments)

    told: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "?"}
    if stored:
        second = client.responses.create(
            model=MODEL, tools=tools, input=[told], previous_response_id=first.id
        )
    else:
        items: Any = [item.model_dump() for item in first.output]
        given = [{"role": "user", "content": "Write it."}, *items, told]
        second = client.responses.create(model=MODEL, tools=tools, input=given, store=False)

    assert second.output_text
    assert sent_arguments(sandbox) == [{UNPARSED: call.arguments}]
