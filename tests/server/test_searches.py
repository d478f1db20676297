"""Web searches, custom tools and counted tokens, as the official clients see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"
PROMPT = "[[sandbox: text=So they say, size=2]]"
TEXT = "So they say[1][2]."
TITLES = ["[sandbox] Page 1", "[sandbox] Page 2"]
USER: Any = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def chat(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=20
    ) as made:
        yield made


@pytest.fixture
def claude(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=proxy.origin, api_key=CLIENT_KEY, max_retries=0, timeout=20
    ) as made:
        yield made


def places(text: str, annotations: Any) -> list[tuple[str, str]]:
    return [(text[each.start_index : each.end_index], each.title) for each in annotations]


PLACES = list(zip(["[1]", "[2]"], TITLES, strict=True))


@pytest.mark.parametrize("streamed", [False, True])
def test_chat_has_annotations_and_takes_them_back(
    chat: openai.OpenAI, sandbox: Sandbox, streamed: bool
) -> None:
    asked: Any = {"model": MODEL, "messages": USER, "web_search_options": {}}
    if streamed:
        with chat.chat.completions.stream(**asked) as stream:
            message: Any = stream.get_final_completion().choices[0].message
    else:
        message = chat.chat.completions.create(**asked).choices[0].message

    assert message.content == TEXT
    assert places(TEXT, [each.url_citation for each in message.annotations]) == PLACES
    given = message.model_dump(exclude_none=True)
    turn: Any = [*USER, {k: given[k] for k in ("role", "content", "annotations")}, *USER]
    raw = chat.chat.completions.with_raw_response.create(model=MODEL, messages=turn)
    assert "messages:annotations-dropped" in raw.headers["x-qwen-proxy-changed"]
    assert b"annotations" not in (sandbox.settle()[-1].body or b"")


@pytest.mark.parametrize("streamed", [False, True])
def test_responses_have_annotations_and_take_them_back(chat: openai.OpenAI, streamed: bool) -> None:
    asked: Any = {"model": MODEL, "input": PROMPT, "tools": [{"type": "web_search"}]}
    if streamed:
        with chat.responses.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            response: Any = stream.get_final_response()
        assert kinds.count("response.output_text.annotation.added") == 2
    else:
        response = chat.responses.create(**asked)

    assert response.output_text == TEXT
    assert places(TEXT, response.output[-1].content[0].annotations) == PLACES
    items: Any = [*USER, *(each.to_dict() for each in response.output), *USER]
    assert chat.responses.create(model=MODEL, input=items).status == "completed"


@pytest.mark.parametrize("streamed", [False, True])
def test_messages_have_citations_and_take_them_back(
    claude: anthropic.Anthropic, streamed: bool
) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    asked: Any = {"model": MODEL, "max_tokens": 99, "messages": USER, "tools": [search]}
    if streamed:
        with claude.messages.stream(**asked) as stream:
            seen: list[Any] = [event for event in stream if event.type == "citation"]
            named = [event.citation.title for event in seen]
            message = stream.get_final_message()
        assert named == TITLES
    else:
        message = claude.messages.create(**asked)

    texts = [block for block in message.content if block.type == "text"]
    assert "".join(block.text for block in texts) == TEXT
    cited: Any = texts[0].citations
    assert [(each.type, each.title) for each in cited] == [
        ("web_search_result_location", title) for title in TITLES
    ]
    turn: Any = [*USER, {"role": "assistant", "content": message.content}, *USER]
    assert claude.messages.create(model=MODEL, max_tokens=99, messages=turn).content


@pytest.mark.parametrize("streamed", [False, True])
def test_a_custom_tool_is_called_and_answered(
    chat: openai.OpenAI, sandbox: Sandbox, streamed: bool
) -> None:
    tool: Any = {"type": "custom", "custom": {"name": "patch", "description": "Patches."}}
    hello: Any = [{"role": "user", "content": "hi"}]
    asked: Any = {"model": "qwen3-coder-plus", "messages": hello, "tools": [tool]}
    call: dict[str, Any] = {"custom": {"input": ""}}
    if not streamed:
        calls: Any = chat.chat.completions.create(**asked).choices[0].message.tool_calls
        call = calls[0].to_dict()
    else:
        for chunk in chat.chat.completions.create(**asked, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or ():
                told: dict[str, Any] = piece.to_dict()
                inner = told.pop("custom")
                inner["input"] = call["custom"]["input"] + inner["input"]
                call["custom"] |= inner
                call |= {name: told[name] for name in ("id", "type") if name in told}

    assert (call["type"], call["custom"]["name"]) == ("custom", "patch")
    assert call["custom"]["input"] == "sandbox input"
    assistant: Any = {"role": "assistant", "tool_calls": [call]}
    result: Any = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    answer = chat.chat.completions.create(**{**asked, "messages": [*hello, assistant, result]})
    assert "done" in (answer.choices[0].message.content or "")


def test_a_tokenizer_that_hangs_costs_some_seconds_once(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_TOKENIZER="host",
        QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
        QWEN_PROXY_WORKERS="1",
    )
    sandbox.control(faults={"tokenizer": "hang"})
    found = []
    with anthropic.Anthropic(base_url=proxy.origin, api_key="x", max_retries=0, timeout=30) as made:
        for _ in range(2):
            raw = made.messages.with_raw_response.count_tokens(
                model=MODEL, messages=[{"role": "user", "content": "hello"}]
            )
            found.append(raw.headers["x-qwen-proxy-tokens"])
            assert json.loads(raw.text())["input_tokens"] > 0

    assert found == ["estimated", "estimated"]
    assert sandbox.wait_until(
        lambda: [r.outcome for r in sandbox.requests if r.route == "tokenizer"] == ["client_gone"]
    )
    assert proxy.log.read_text().count("cause=timeout") == 1
