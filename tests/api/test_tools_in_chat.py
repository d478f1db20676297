"""Tools that the proxy runs, in chat, in front of the sandbox and a fake runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, error_of
from tests.api.tool_calls import chats, in_front_of
from tests.fakes.tool_runner import FakeRunner

TIME: dict[str, Any] = {"type": "mcp", "server_label": "time", "allowed_tools": ["now"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
def app(sandbox: Sandbox, runner: FakeRunner) -> Iterator[App]:
    with in_front_of(sandbox, runner, QWEN_PROXY_TOOL_ROUNDS=2) as made:
        yield made


def body(said: str, **members: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": said}]
    return {"model": "qwen3.7-plus", "messages": messages, "tools": [TIME], **members}


def whole(app: App, said: str, **members: Any) -> dict[str, Any]:
    answer = app.chat(body(said, **members))
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.get_json()
    ChatCompletion.model_validate(value)
    return value


def streamed(app: App, said: str, **members: Any) -> list[dict[str, Any]]:
    options = {"include_usage": True}
    answer = app.chat(body(said, stream=True, stream_options=options, **members))
    with answer:
        lines = answer.data.decode().split("\n\n")
    assert "data: [DONE]" in lines
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk)
    assert len({chunk["id"] for chunk in found}) == 1
    return found


def text_of(chunks: list[dict[str, Any]]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_the_client_gets_the_answer_alone(app: App, sandbox: Sandbox, runner: FakeRunner) -> None:
    answer = app.chat(body("[[sandbox: prompt-tokens=100]] Time?"))
    value = answer.get_json()

    ChatCompletion.model_validate(value)
    message = value["choices"][0]["message"]
    assert "now(zone=sandbox zone) is done" in message["content"]
    assert "tool_calls" not in message
    assert value["choices"][0]["finish_reason"] == "stop"
    assert value["usage"]["prompt_tokens"] == 200
    assert answer.headers["x-qwen-proxy-tools"] == "time.now=1"
    assert [each.tool for each in runner.ran] == ["time.now"]
    sandbox.settle()
    second = json.loads(sandbox.chats[1].body or b"{}")
    assert [each["role"] for each in second["messages"]] == ["user", "assistant", "tool"]
    assert "stream" not in app.calls[0]


def test_a_stream_has_the_text_as_it_comes(app: App) -> None:
    chunks = streamed(app, "[[sandbox: think, prompt-tokens=100]] Time?")

    assert "now(zone=sandbox zone) is done" in text_of(chunks)
    assert chunks[-1]["usage"]["prompt_tokens"] == 200
    finishes = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert [each for each in finishes if each] == ["stop"]
    assert app.calls[0]["tools"] == "time.now=1"


def test_functions_of_the_client_come_with_what_our_tools_told(
    app: App, sandbox: Sandbox, runner: FakeRunner
) -> None:
    value = whole(app, "[[sandbox: tools=2]]", tools=[TIME, WEATHER])
    choice = value["choices"][0]

    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert choice["message"]["content"] == "[time.now: now(zone=sandbox zone) is done]"
    assert len(runner.ran) == 1
    chunks = streamed(app, "[[sandbox: tools=2]]", tools=[TIME, WEATHER])
    assert text_of(chunks) == choice["message"]["content"]
    assert [c["finish_reason"] for ch in chunks for c in ch["choices"]][-1] == "tool_calls"


def test_a_filter_of_tools_is_read_as_in_responses(app: App, runner: FakeRunner) -> None:
    def asked(allowed: Any) -> TestResponse:
        return app.chat(body("Time?", tools=[{**TIME, "allowed_tools": allowed}]))

    answer = asked({"read_only": True, "tool_names": ["now"]})
    changed = answer.headers["x-qwen-proxy-changed"].split(", ")
    assert "tools:tools[0].allowed_tools-read_only" in changed
    assert len(runner.ran) == 1
    wrong = asked("now")
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "tools[0].allowed_tools")


def allowing(*tools: dict[str, Any]) -> dict[str, Any]:
    inner = {"mode": "required", "tools": list(tools)}
    return {"type": "allowed_tools", "allowed_tools": inner}


NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
#: The tools of a request with each kind, as the model sees them.
ALL = ["get_weather", "time__now", "time__zones", "python"]


@pytest.mark.parametrize(
    ("choice", "ran", "first", "later"),
    [
        ({"type": "mcp", "server_label": "time", "name": "zones"}, "time.zones", ALL, ALL),
        ({"type": "mcp", "server_label": "time"}, "time.now", ["time__now", "time__zones"], ALL),
        ({"type": "code_interpreter"}, "python.run", ALL, ALL),
        (
            allowing({"type": "mcp", "server_label": "time", "name": "zones"}, NAMED),
            "time.zones",
            ["get_weather", "time__zones"],
            ["get_weather", "time__zones"],
        ),
    ],
)
def test_a_tool_is_chosen_for_the_first_turn(
    app: App, sandbox: Sandbox, runner: FakeRunner, choice: Any, ran: str, first: Any, later: Any
) -> None:
    tools = [WEATHER, {"type": "mcp", "server_label": "time"}, {"type": "code_interpreter"}]
    answer = app.chat(body("[[sandbox: tools=2]]", tools=tools, tool_choice=choice))

    assert answer.status_code == 200, answer.text
    assert runner.ran[0].tool == ran
    asked = chats(sandbox)
    assert [each["function"]["name"] for each in asked[0]["tools"]] == first
    if len(asked) > 1:  # the last one calls a function of the client, too
        assert [each["function"]["name"] for each in asked[1]["tools"]] == later
        assert "tool_choice" not in asked[1]


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "mcp", "server_label": "files"},
        {"type": "mcp", "server_label": "time", "name": "then"},
        {"type": "code_interpreter"},
        allowing({"type": "mcp", "server_label": "clock"}),
    ],
)
def test_a_choice_of_what_the_request_does_not_have_is_refused(app: App, choice: Any) -> None:
    error = error_of(app.chat(body("hello", tool_choice=choice)))

    assert error["code"] == "invalid_value"
    assert error["param"].startswith("tool_choice")
    assert "not found in 'tools'" in error["message"]


def test_at_the_limit_the_answer_is_cut(app: App, runner: FakeRunner) -> None:
    value = whole(app, "[[sandbox: tool-rounds=50]]")

    assert value["choices"][0]["finish_reason"] == "length"
    assert "limit of 2 rounds" in value["choices"][0]["message"]["content"]
    assert len(runner.ran) == 2


@pytest.mark.parametrize(
    ("tool", "status", "code"),
    [
        ({"type": "mcp", "server_label": "files"}, 403, "tool_needs_approval"),
        ({"type": "mcp", "server_label": "clock"}, 400, "unknown_tool_server"),
        ({**TIME, "server_url": "https://mcp.example"}, 400, "invalid_value"),
        ({**TIME, "require_approval": "always"}, 400, "unsupported_value"),
        ({**TIME, "require_approval": {"always": {"tool_names": []}}}, 400, "unsupported_value"),
    ],
)
def test_tools_that_are_refused(app: App, tool: dict[str, Any], status: int, code: str) -> None:
    answer = app.chat(body("hello", tools=[tool]))

    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_a_key_may_use_its_own_tools(app: App) -> None:
    made = app.services.client_keys.add({"name": "anna", "tools": ["python"]})
    app.services.key_ring.look_again()
    headers = {"Authorization": f"Bearer {made.secret}"}
    refused = app.chat(body("hello"), headers=headers)
    code = app.chat(body("hello", tools=[{"type": "code_interpreter"}]), headers=headers)

    assert (refused.status_code, error_of(refused)["code"]) == (403, "tool_not_allowed")
    assert code.headers["x-qwen-proxy-tools"] == "python.run=1"


def headers_of_a_key(app: App, **members: Any) -> dict[str, str]:
    made = app.services.client_keys.add({"name": "anna", "tools_always": True, **members})
    app.services.key_ring.look_again()
    return {"Authorization": f"Bearer {made.secret}"}


def plain(said: str, **members: Any) -> dict[str, Any]:
    """A request that names no tool of the proxy."""
    return {key: value for key, value in body(said, **members).items() if key != "tools"}


def test_a_key_that_always_has_its_tools_need_not_name_them(app: App, runner: FakeRunner) -> None:
    headers = headers_of_a_key(app, tools=["time"])
    answer = app.chat(plain("[[sandbox: tools=1]] Time?"), headers=headers)

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-qwen-proxy-tools"].startswith("time.")
    assert {each.tool.partition(".")[0] for each in runner.ran} == {"time"}


def test_what_needs_trust_is_left_out_and_named(app: App, runner: FakeRunner) -> None:
    answer = app.chat(plain("hello"), headers=headers_of_a_key(app, tools=["files"]))

    assert answer.status_code == 200
    assert answer.headers["x-qwen-proxy-changed"] == "tools:files-needs-trust"
    assert not runner.ran


def test_calls_of_such_a_key_go_on_where_no_tool_can_run(app: App, runner: FakeRunner) -> None:
    headers = headers_of_a_key(app, tools=["time"])
    runner.down = "it was killed"
    answer = app.chat(plain("hello"), headers=headers)
    named = app.chat(body("hello"), headers=headers)
    runner.down = ""
    several = app.chat(plain("hello", n=2), headers=headers)

    assert (answer.status_code, named.status_code) == (200, 503)
    assert answer.headers["x-qwen-proxy-changed"] == "tools:not-available"
    assert (several.status_code, len(several.get_json()["choices"])) == (200, 2)
    assert "tools:not-with-several-choices" in several.headers["x-qwen-proxy-changed"]


def test_a_key_without_tools_has_none_always(app: App, runner: FakeRunner) -> None:
    answer = app.chat(plain("[[sandbox: tools=1]]"), headers=headers_of_a_key(app))

    assert answer.status_code == 200
    assert not runner.ran


# --- servers that the client brings --------------------------------------------------------------

MINE: dict[str, Any] = {
    "type": "mcp",
    "server_label": "mine",
    "server_url": "https://mcp.example/mcp?key=hidden",
    "authorization": "hidden-token",
    "headers": {"X-Team": "a"},
}


@pytest.fixture
def own() -> FakeRunner:
    return FakeRunner(hosts=["mcp.example", "broken.example"])


@pytest.fixture
def open_app(sandbox: Sandbox, own: FakeRunner) -> Iterator[App]:
    with in_front_of(sandbox, own) as made:
        yield made


def test_a_server_of_the_client_is_used_without_an_approval(
    open_app: App, own: FakeRunner, sandbox: Sandbox
) -> None:
    value = whole(open_app, "Time?", tools=[{**MINE, "allowed_tools": ["now"]}])

    assert "now(zone=sandbox zone) is done" in value["choices"][0]["message"]["content"]
    assert [each.tool for each in own.ran] == ["mine.now"]
    (asked,) = own.asked
    assert asked.url == MINE["server_url"]
    assert asked.headers == {"X-Team": "a", "Authorization": "Bearer hidden-token"}
    assert open_app.calls[0]["tools"] == "mine.now=1"
    assert "hidden" not in str([chats(sandbox), open_app.calls, value])


def test_a_key_may_bring_servers_where_it_is_allowed(open_app: App, own: FakeRunner) -> None:
    def asked(*tools: str) -> TestResponse:
        made = open_app.services.client_keys.add({"name": f"n{len(tools)}", "tools": [*tools]})
        open_app.services.key_ring.look_again()
        headers = {"Authorization": f"Bearer {made.secret}"}
        return open_app.chat(body("Time?", tools=[MINE]), headers=headers)

    refused, taken = asked("mine"), asked("time", "https://mcp.example")

    assert (refused.status_code, error_of(refused)["code"]) == (403, "tool_not_allowed")
    assert "--tools 'https://mcp.example'" in error_of(refused)["message"]
    assert taken.status_code == 200
    assert len(own.asked) == 1


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"server_url": "https://other.example"}, 400, "tool_host_not_allowed", "server_url"),
        ({"server_url": "mcp.example"}, 400, "invalid_value", "server_url"),
        ({"server_url": "https://broken.example"}, 424, "tool_server_failed", "server_url"),
        ({"server_label": "time"}, 400, "invalid_value", "server_url"),
        ({"server_label": "fetch"}, 400, "invalid_value", "server_url"),
        ({"server_label": "python"}, 400, "invalid_value", "server_url"),
        ({"server_label": "a b"}, 400, "invalid_value", "server_label"),
        ({"headers": {"Host": "x"}}, 400, "invalid_value", "headers"),
        ({"headers": {"X": "a\r\nY: b"}}, 400, "invalid_value", "headers"),
        ({"headers": {"X": 1}}, 400, "invalid_type", "headers"),
        ({"authorization": "a\nb"}, 400, "invalid_value", "authorization"),
    ],
)
def test_servers_of_clients_that_are_refused(
    open_app: App, own: FakeRunner, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = open_app.chat(body("Time?", tools=[{**MINE, **change}]))

    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["param"] == f"tools[0].{param}"
    assert "hidden" not in error["message"]
    assert not own.ran


def test_servers_of_a_request_are_few_and_each_has_a_label(open_app: App) -> None:
    many = [{**MINE, "server_label": f"s{number}"} for number in range(9)]
    twice = [MINE, {**MINE, "server_url": "https://mcp.example/other"}]

    assert error_of(open_app.chat(body("Time?", tools=many)))["code"] == "too_many_tools"
    error = error_of(open_app.chat(body("Time?", tools=twice)))
    assert "Two servers have the label 'mine'" in error["message"]
