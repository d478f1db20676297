"""Tools that the proxy runs, in Anthropic's API, in front of the sandbox and a fake runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.lib.streaming._beta_messages import accumulate_event
from anthropic.types.beta import BetaMessage, BetaRawMessageStreamEvent
from httpx2 import Headers
from pydantic import TypeAdapter
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool, ToolImage, ToolResult
from tests.api.apps import App
from tests.api.tool_calls import chats, in_front_of, spec
from tests.fakes.tool_runner import FakeRunner

CHAT = "qwen3.7-plus"
TIME: dict[str, Any] = {"type": "url", "name": "time", "url": "qwen-proxy://time"}
TOOLSET: dict[str, Any] = {"type": "mcp_toolset", "mcp_server_name": "time"}
CODE: dict[str, Any] = {"type": "code_execution_20250522", "name": "code_execution"}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
EVENT: TypeAdapter[Any] = TypeAdapter(BetaRawMessageStreamEvent)


@pytest.fixture
def app(sandbox: Sandbox, runner: FakeRunner) -> Iterator[App]:
    with in_front_of(sandbox, runner) as made:
        yield made


def post(app: App, content: Any = "What time is it?", **members: Any) -> TestResponse:
    said = content if isinstance(content, list) else [{"role": "user", "content": content}]
    body = {"model": CHAT, "max_tokens": 1000, "messages": said, **members}
    if not {"mcp_servers", "tools"} & members.keys():
        body |= {"mcp_servers": [TIME], "tools": [TOOLSET]}
    return app.client.post("/v1/messages", json=body)


def events_of(answer: TestResponse) -> list[dict[str, Any]]:
    with answer:
        blocks = answer.data.decode().split("\n\n")
    found = [json.loads(block.split("data: ", 1)[1]) for block in blocks if "data: " in block]
    return [event for event in found if event["type"] != "ping"]


def accumulated(answer: TestResponse) -> dict[str, Any]:
    """The message that the SDK puts together of a stream."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events_of(answer):
        snapshot = accumulate_event(
            event=EVENT.validate_python(event),
            current_snapshot=snapshot,
            request_headers=Headers(),
            json_bufs=buffers,
        )
    message: dict[str, Any] = snapshot.to_dict(mode="json", exclude_unset=True)
    return message


def message(app: App, content: Any = "What time is it?", **members: Any) -> dict[str, Any]:
    answer = post(app, content, **members)
    assert answer.status_code == 200, answer.text
    if members.get("stream"):
        return accumulated(answer)
    value: dict[str, Any] = answer.get_json()
    BetaMessage.model_validate(value)
    return value


def refused(answer: TestResponse) -> tuple[int, str]:
    error = answer.get_json()["error"]
    return answer.status_code, error["message"]


def kinds(value: dict[str, Any]) -> list[str]:
    return [block["type"] for block in value["content"]]


def roles(chat: dict[str, Any]) -> list[str]:
    return [each["role"] for each in chat["messages"]]


# --- a call --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_is_called(app: App, sandbox: Sandbox, runner: FakeRunner, stream: bool) -> None:
    value = message(app, spec(zone="CET"), stream=stream)

    use, result, text = value["content"]
    assert (use["type"], use["name"], use["server_name"]) == ("mcp_tool_use", "now", "time")
    assert use["input"] == {"zone": "CET"}
    assert (result["type"], result["tool_use_id"]) == ("mcp_tool_result", use["id"])
    assert result["is_error"] is False
    assert result["content"][0]["text"] == "now(zone=CET) is done"
    assert "now(zone=CET) is done" in text["text"]
    assert (value["stop_reason"], value["stop_sequence"]) == ("end_turn", None)
    assert [each.tool for each in runner.ran] == ["time.now"]
    first, second = chats(sandbox)
    assert [tool["function"]["name"] for tool in first["tools"]] == ["time__now", "time__zones"]
    assert roles(second) == ["user", "assistant", "tool"]
    assert app.calls[0]["tools"] == "time.now=1"
    assert app.services.admission.in_flight == 0


def test_a_stream_and_the_whole_are_the_same(app: App) -> None:
    asks = "[[sandbox: think, tools=2, tool-rounds=2, prompt-tokens=100]]"
    streamed, whole = message(app, asks, stream=True), message(app, asks)

    assert kinds(streamed) == kinds(whole)
    assert kinds(whole).count("mcp_tool_result") == kinds(whole).count("mcp_tool_use") == 4
    assert streamed["usage"]["input_tokens"] == whole["usage"]["input_tokens"] == 300
    assert len({block["id"] for block in whole["content"] if "id" in block}) == 4


def test_a_whole_answer_names_the_tools(app: App) -> None:
    assert post(app).headers["x-qwen-proxy-tools"] == "time.now=1"


@pytest.mark.parametrize("offered", [True, False])
def test_the_blocks_come_back(app: App, sandbox: Sandbox, offered: bool) -> None:
    before = message(app, spec(zone="CET"))
    said = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": before["content"]},
        {"role": "user", "content": "[[sandbox: no-tools]] thanks"},
    ]
    message(app, said, **({} if offered else {"tools": []}))

    chat = chats(sandbox)[-1]
    assert roles(chat) == ["user", "assistant", "tool", "assistant", "user"]
    call = chat["messages"][1]["tool_calls"][0]
    assert call["function"] == {"name": "time__now", "arguments": '{"zone": "CET"}'}
    assert chat["messages"][2]["content"] == "now(zone=CET) is done"


@pytest.mark.parametrize("stream", [True, False])
def test_mixed_calls_end_the_message_for_the_client(
    app: App, sandbox: Sandbox, stream: bool
) -> None:
    tools = [WEATHER, {**TOOLSET, "configs": {"zones": {"enabled": False}}}]
    ask = [{"role": "user", "content": "[[sandbox: tools=2]]"}]
    value = message(app, ask, mcp_servers=[TIME], tools=tools, stream=stream)

    assert kinds(value) == ["tool_use", "mcp_tool_use", "mcp_tool_result"]
    assert (value["stop_reason"], len(chats(sandbox))) == ("tool_use", 1)
    result = {"type": "tool_result", "tool_use_id": value["content"][0]["id"], "content": "sun"}
    said = [*ask, {"role": "assistant", "content": value["content"]}]
    said.append({"role": "user", "content": [result]})
    following = message(app, said, mcp_servers=[TIME], tools=tools)
    assert kinds(following) == ["text"]
    chat = chats(sandbox)[-1]
    assert roles(chat) == ["user", "assistant", "tool", "tool"]
    called = [call["id"] for call in chat["messages"][1]["tool_calls"]]
    assert {each["tool_call_id"] for each in chat["messages"][2:]} == set(called)


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_tool_that_fails_is_told_to_the_model(sandbox: Sandbox) -> None:
    runner = FakeRunner(does=lambda tool, given: ToolResult("no such zone", is_error=True))
    with in_front_of(sandbox, runner) as app:
        value = message(app)

    result, text = value["content"][1:]
    assert (result["is_error"], result["content"][0]["text"]) == (True, "no such zone")
    assert "The tool failed: no such zone" in text["text"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_runner_that_ends_meanwhile(sandbox: Sandbox, stream: bool) -> None:
    def dies(tool: ServerTool, given: Any) -> ToolResult:
        raise RunnerUnavailable("it ended.")

    with in_front_of(sandbox, FakeRunner(does=dies)) as app:
        answer = post(app, stream=stream)
        if stream:
            last = events_of(answer)[-1]
            assert last["type"] == "error"
            assert "it ended." in last["error"]["message"]
        else:
            assert refused(answer)[0] == 503


@pytest.mark.parametrize("stream", [True, False])
def test_at_the_limit_the_turn_pauses(sandbox: Sandbox, runner: FakeRunner, stream: bool) -> None:
    with in_front_of(sandbox, runner, QWEN_PROXY_TOOL_ROUNDS=2) as app:
        value = message(app, "[[sandbox: tool-rounds=50]]", stream=stream)
        assert len(runner.ran) == 2
        said = [
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": value["content"]},
        ]
        message(app, said, tools=[])

    assert value["stop_reason"] == "pause_turn"
    results = [block for block in value["content"] if block["type"] == "mcp_tool_result"]
    assert [block["is_error"] for block in results] == [False, False, True]
    assert "limit of 2 rounds" in value["content"][-1]["text"]
    assert chats(sandbox)[-1]["messages"][-1] == {"role": "user", "content": "Go on."}


# --- which tools ---------------------------------------------------------------------------------


def test_without_a_runner_nothing_changes(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, None) as app:
        answer = post(app, mcp_servers=[TIME], tools=[TOOLSET, CODE])

    assert "mcp_servers:dropped" in answer.headers["x-qwen-proxy-changed"]
    assert kinds(answer.get_json()) == ["text"]


@pytest.mark.parametrize(
    ("members", "status", "words"),
    [
        ({"mcp_servers": [{**TIME, "name": "clock", "url": ""}]}, 400, "has no tools with"),
        ({"mcp_servers": [{**TIME, "url": "https://mcp.example"}]}, 400, "yours another one"),
        (
            {"mcp_servers": [{**TIME, "name": "mine", "url": "https://mcp.example"}]},
            400,
            "Ask the operator to, or leave the address out",
        ),
        ({"mcp_servers": [{"type": "url", "name": "files"}]}, 403, "need an approval"),
        (
            {"mcp_servers": [{**TIME, "tool_configuration": {"allowed_tools": ["then"]}}]},
            400,
            "It has: now, zones",
        ),
        ({"mcp_servers": ["time"]}, 400, "object"),
        ({"tools": [{"type": "mcp_toolset"}]}, 400, "mcp_server_name"),
        ({"tools": [CODE], "container": 5}, 400, "container"),
        ({"container": "container_1"}, 400, "container"),
    ],
)
def test_tools_that_are_refused(app: App, members: dict[str, Any], status: int, words: str) -> None:
    code, text = refused(post(app, **members))

    assert code == status
    assert words in text


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({"mcp_servers": [{"type": "url", "name": "time"}]}, ["time__now", "time__zones"]),
        (
            {"mcp_servers": [{**TIME, "tool_configuration": {"allowed_tools": ["zones"]}}]},
            ["time__zones"],
        ),
        ({"tools": [TOOLSET]}, ["time__now", "time__zones"]),
        (
            {
                "tools": [
                    {
                        **TOOLSET,
                        "default_config": {"enabled": False},
                        "configs": {"now": {"enabled": True}},
                    }
                ]
            },
            ["time__now"],
        ),
    ],
)
def test_which_tools_are_offered(
    app: App, sandbox: Sandbox, members: dict[str, Any], names: list[str]
) -> None:
    message(app, **members)

    assert [tool["function"]["name"] for tool in chats(sandbox)[0]["tools"]] == names


def test_a_tool_is_forced_for_the_first_turn(app: App, sandbox: Sandbox) -> None:
    choice = {"type": "tool", "name": "zones"}
    value = message(app, mcp_servers=[TIME], tools=[TOOLSET], tool_choice=choice)

    assert value["content"][0]["name"] == "zones"
    assert "tool_choice" not in chats(sandbox)[1]


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_of_the_client_is_used(sandbox: Sandbox, stream: bool) -> None:
    runner = FakeRunner(hosts=["mcp.example"])
    mine = {"type": "url", "name": "mine", "url": "https://mcp.example/mcp"}
    server = {**mine, "authorization_token": "hidden-token"}
    with in_front_of(sandbox, runner) as app:
        answer = post(
            app,
            mcp_servers=[server],
            tools=[{"type": "mcp_toolset", "mcp_server_name": "mine"}],
            stream=stream,
        )
        value = accumulated(answer) if stream else answer.get_json()

    assert kinds(value) == ["mcp_tool_use", "mcp_tool_result", "text"]
    assert (value["content"][0]["server_name"], runner.ran[0].tool) == ("mine", "mine.now")
    assert runner.asked[0].headers == {"Authorization": "Bearer hidden-token"}
    assert "authorization" not in answer.headers["x-qwen-proxy-changed"]
    assert "hidden" not in str([value, chats(sandbox), app.calls])


def test_a_server_of_the_client_that_fails(sandbox: Sandbox) -> None:
    broken = {"type": "url", "name": "mine", "url": "https://broken.example"}
    with in_front_of(sandbox, FakeRunner(hosts=["broken.example"])) as app:
        answer = post(app, mcp_servers=[broken], tools=[])

    assert refused(answer) == (
        424,
        "The tools of your server 'mine' cannot be used: broken.example answers with HTTP 401.",
    )


# --- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("code_execution_20250522", "code_execution"),
        ("code_execution_20250825", "bash_code_execution"),
        ("code_execution_20260120", "bash_code_execution"),
        ("code_execution_20260521", "bash_code_execution"),
    ],
)
def test_code_is_run(sandbox: Sandbox, kind: str, name: str, stream: bool) -> None:
    def plots(tool: ServerTool, given: Any) -> ToolResult:
        return ToolResult("42", is_error=False, images=(ToolImage("image/png", b"PNG"),))

    runner = FakeRunner(does=plots)
    tools = [{"type": kind, "name": "code_execution"}]
    with in_front_of(sandbox, runner) as app:
        ask = spec(code="print('é')")
        value = message(app, ask, tools=tools, stream=stream)
        said = [{"role": "user", "content": ask}]
        said.append({"role": "assistant", "content": value["content"]})
        said.append({"role": "user", "content": spec(code="2")})
        container = value["container"]["id"]
        message(app, said, tools=tools, container=container)

    use, result, _ = value["content"]
    assert (use["type"], use["name"]) == ("server_tool_use", name)
    shown = use["input"]["code" if name == "code_execution" else "command"]
    assert "print('é')" in shown
    assert (result["type"], result["tool_use_id"]) == (f"{name}_tool_result", use["id"])
    output = result["content"]
    assert (output["type"], output["return_code"]) == (f"{name}_result", 0)
    assert output["stdout"].startswith("42")
    assert [each.arguments for each in runner.ran] == [{"code": "print('é')"}, {"code": "2"}]
    assert runner.ran[0].container == runner.ran[1].container
    call = chats(sandbox)[-1]["messages"][1]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("python", {"code": "print('é')"})


def test_code_that_fails(sandbox: Sandbox) -> None:
    runner = FakeRunner(does=lambda tool, given: ToolResult("NameError: x", is_error=True))
    with in_front_of(sandbox, runner) as app:
        value = message(app, spec(code="x"), tools=[CODE])
        broken = message(app, "[[sandbox: tool-args=%5B%5D]]", tools=[CODE])

    assert value["content"][1]["content"] == {
        "type": "code_execution_result",
        "content": [],
        "stdout": "",
        "stderr": "NameError: x",
        "return_code": 1,
    }
    assert broken["content"][1]["content"]["error_code"] == "invalid_tool_input"
