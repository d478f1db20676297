"""What the client sends is what the upstream gets; only what must change is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.fakes.canned_upstream import CannedUpstream
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy, start
from tests.kit.raw_client import Exchange

pytestmark = pytest.mark.server

MEMBERS = (
    b'"temperature": 0',
    b'"top_p":1.0',
    b'"seed":1e2',
    b'"messages": [ {"role":"user","content":"\\u00e9\\ud83e\\udd8a \\/ \xc3\xa9"},'
    b' {"role":"assistant","content":null,"reasoning_content":"hm","tool_calls":[{"id":"c","type":'
    b'"function","function":{"name":"f","arguments":"{\\"a\\": 1}"}}]},'
    b' {"role":"tool","tool_call_id":"c","content":"x"},'
    b' {"role":"user","content":[{"type":"text","text":"hi","cache_control":{"type":"ephemeral"}},'
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]',
    b'"tools": [ {"type":"function","function":{"name":"f","parameters":{}}} ]',
    b'"parallel_tool_calls": false',
    b'"x_unknown": {"deep": [1, 2.50, null, true]}',
)
UNSTREAMED = b'{ "model" : "qwen3.7-plus",\n  ' + b" , ".join(MEMBERS) + b" }"
STREAMED = UNSTREAMED[:-1] + b', "stream": true, "stream_options": {"include_usage": true} }\n'


def test_a_request_that_needs_no_change_goes_up_byte_for_byte(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with Exchange(proxy.port, STREAMED, key=CLIENT_KEY) as exchange:
        exchange.body()
    sandbox.settle()

    assert sandbox.chats[-1].body == STREAMED


def test_a_request_that_needs_a_change_keeps_every_other_values_bytes(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with Exchange(proxy.port, UNSTREAMED, key=CLIENT_KEY) as exchange:
        exchange.body()
    sandbox.settle()

    sent = sandbox.chats[-1].body or b""
    values = [member.partition(b":")[2].strip() for member in MEMBERS]
    assert all(b":" + value in sent for value in values)
    assert json.loads(sent) == json.loads(STREAMED)


def test_headers_that_speak_for_the_client_go_up_and_others_do_not(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with Exchange(
        proxy.port,
        STREAMED,
        key=CLIENT_KEY,
        headers={
            "User-Agent": "my-agent/1.0",
            "X-DashScope-DataInspection": '{"input":"cip"}',
            "Cookie": "a=b",
            "X-Other": "no",
        },
    ) as exchange:
        exchange.body()
    sandbox.settle()

    headers = {name.lower(): value for name, value in sandbox.chats[-1].headers.items()}
    assert headers["user-agent"] == "my-agent/1.0"
    assert headers["x-dashscope-datainspection"] == '{"input":"cip"}'
    assert "cookie" not in headers and "x-other" not in headers
    assert headers["authorization"].endswith(UPSTREAM_KEY[-4:])


def test_an_explicit_upstream_is_asked_as_the_client_asked(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(QWEN_UPSTREAM_BASE_URL=sandbox.base_url, QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY)
    body = b'{"model":"qwen3.7-plus","messages":[{"role":"user","content":"hi"}], "n": 1}'
    with Exchange(proxy.port, body) as exchange:
        answer = exchange.body()
    sandbox.settle()

    assert sandbox.chats[-1].body == body
    assert json.loads(answer)["choices"][0]["message"]["content"].startswith("[sandbox]")


def test_an_explicit_upstream_at_a_qwen_host_is_adapted_and_streamed(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    """As Codex needs it: its `developer` messages and parameters are refused there otherwise."""
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
    )
    body = (
        b'{"model":"qwen3.7-plus","temperature":2,"messages":[{"role":"user","content":"hi"},'
        b'{"role":"developer","content":"Be kind."}]}'
    )
    with Exchange(proxy.port, body) as exchange:
        answer = exchange.body()
    sandbox.settle()

    sent = json.loads(sandbox.chats[-1].body or b"")
    assert (sent["stream"], sent["temperature"]) == (True, 1.99)
    assert [each["role"] for each in sent["messages"]] == ["system", "user"]
    assert json.loads(answer)["choices"][0]["message"]["content"].startswith("[sandbox]")


JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
CHOICES = (
    b'[ {"index":0,"message":{"role":"assistant","content":"\\u00e9 \\"model\\": 1.0"},'
    b'"finish_reason":"stop", "x": 1.50} ]'
)


@pytest.fixture(scope="module")
def canned() -> Iterator[CannedUpstream]:
    """An upstream whose answer each of the tests below sets."""
    upstream = CannedUpstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def renaming(canned: CannedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in front of it, whose clients have another name for the model."""
    running = start(
        tmp_path_factory.mktemp("renaming"),
        {"QWEN_UPSTREAM_BASE_URL": canned.base_url, "QWEN_PROXY_MODEL_ALIASES": "mine=other"},
    )
    yield running
    running.stop()


@pytest.mark.parametrize(
    "said",
    [b'{"model" : "snapshot", "choices" : ' + CHOICES + b"}", b'{"choices":' + CHOICES + b"}"],
    ids=["named otherwise", "not named"],
)
def test_a_whole_answer_of_an_explicit_upstream_has_the_clients_name_for_the_model(
    renaming: Proxy, canned: CannedUpstream, said: bytes
) -> None:
    canned.answer = JSON_HEAD % len(said) + said
    messages = b'"messages":[{"role":"user","content":"hi"}]'
    with Exchange(renaming.port, b'{"model":"mine",' + messages + b"}") as exchange:
        renamed = exchange.body()
    with Exchange(renaming.port, b'{"model":"other",' + messages + b"}") as exchange:
        untouched = exchange.body()

    assert json.loads(renamed) == {**json.loads(said), "model": "mine"}
    assert CHOICES in renamed
    assert untouched == said


def test_an_answer_that_is_hardly_json_gets_the_clients_name_for_the_model(
    renaming: Proxy, canned: CannedUpstream
) -> None:
    said = b'{"model":"other","score":NaN,"choices":[]}'
    canned.answer = JSON_HEAD % len(said) + said
    asked = b'{"model":"mine","messages":[{"role":"user","content":"hi"}]}'
    with Exchange(renaming.port, asked) as e:
        assert e.head()[0] == 200
        assert json.loads(e.body())["model"] == "mine"


@pytest.mark.parametrize(("mode", "streamed"), [("always", True), ("as-asked", False)])
def test_the_setting_overrides_how_the_upstream_is_asked(
    start_proxy: StartProxy, sandbox: Sandbox, mode: str, streamed: bool
) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_UPSTREAM_STREAM=mode,
    )
    body = b'{"model":"qwen3.7-plus","messages":[{"role":"user","content":"hi"}]}'
    with Exchange(proxy.port, body) as exchange:
        assert exchange.head()[0] == 200
    sandbox.settle()

    assert json.loads(sandbox.chats[-1].body or b"").get("stream", False) is streamed
    old = {
        "model": "qwen3.7-plus",
        "messages": [{"role": "user", "content": "hi [[sandbox: tools=1]]"}],
        "functions": [{"name": "get_weather", "parameters": {"type": "object"}}],
    }
    with Exchange(proxy.port, json.dumps(old).encode()) as exchange:
        choice = json.loads(exchange.body())["choices"][0]
    assert choice["message"]["function_call"]["name"] == "get_weather"
    assert choice["finish_reason"] == "function_call"
