"""Tools that the proxy runs, in the Responses API, in front of the sandbox and a fake runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.tools.runner import RunnerUnavailable, ServerTool, ToolImage, ToolResult
from tests.api.apps import App, error_of
from tests.api.responding import events_of, kinds, response_of
from tests.api.tool_calls import chats, in_front_of, spec
from tests.fakes.clock import FakeClock
from tests.fakes.tool_runner import NOW, PYTHON, WRITE, ZONES, FakeRunner

CHAT = "qwen3.7-plus"
TIME: dict[str, Any] = {"type": "mcp", "server_label": "time"}
FILES: dict[str, Any] = {"type": "mcp", "server_label": "files"}
CODE: dict[str, Any] = {"type": "code_interpreter", "container": {"type": "auto"}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def app(sandbox: Sandbox, runner: FakeRunner) -> Iterator[App]:
    with in_front_of(sandbox, runner) as made:
        yield made


def post(app: App, input: Any = "What time is it?", **members: Any) -> TestResponse:
    body = {"model": CHAT, "input": input, "tools": [TIME], **members}
    return app.client.post("/v1/responses", json=body)


def whole(app: App, input: Any = "What time is it?", **members: Any) -> dict[str, Any]:
    return response_of(post(app, input, **members))


def text_of(response: dict[str, Any]) -> str:
    return str(response["output"][-1]["content"][0]["text"])


# --- a call --------------------------------------------------------------------------------------


def test_a_tool_is_listed_and_called(app: App, sandbox: Sandbox, runner: FakeRunner) -> None:
    answer = post(app, spec(zone="CET"))
    response = answer.get_json()

    Response.model_validate(response)
    listed, call, message = response["output"]
    assert (listed["type"], listed["server_label"]) == ("mcp_list_tools", "time")
    assert [tool["name"] for tool in listed["tools"]] == ["now", "zones"]
    assert (call["type"], call["status"]) == ("mcp_call", "completed")
    assert (call["server_label"], call["name"]) == ("time", "now")
    assert json.loads(call["arguments"]) == {"zone": "CET"}
    assert call["output"] == "now(zone=CET) is done"
    assert "now(zone=CET) is done" in message["content"][0]["text"]
    assert [(each.tool, each.arguments) for each in runner.ran] == [("time.now", {"zone": "CET"})]
    assert answer.headers["x-qwen-proxy-tools"] == "time.now=1"
    first, second = chats(sandbox)
    assert [tool["function"]["name"] for tool in first["tools"]] == ["time__now", "time__zones"]
    assert first["tools"][0]["function"]["parameters"] == NOW.schema
    called, output = second["messages"][-2:]
    assert called["tool_calls"][0]["function"]["name"] == "time__now"
    assert output == {
        "role": "tool",
        "tool_call_id": called["tool_calls"][0]["id"],
        "content": "now(zone=CET) is done",
    }


def test_usage_is_the_sum_and_the_record_has_the_tools(app: App) -> None:
    response = whole(app, "[[sandbox: prompt-tokens=100, completion-tokens=7]]")

    assert response["usage"]["input_tokens"] == 200
    assert response["usage"]["output_tokens"] == 14
    (call,) = app.calls
    assert (call["tools"], call["tool_calls"], call["attempts"]) == ("time.now=1", 1, 2)
    assert app.services.admission.in_flight == 0


def test_a_stream_has_its_events_in_order(app: App) -> None:
    events = events_of(post(app, spec(zone="CET"), stream=True))

    names = [event["type"].removeprefix("response.") for event in events]
    assert names[:6] == [
        "created",
        "in_progress",
        "output_item.added",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "output_item.done",
    ]
    calls = [name for name in names[6:] if not name.startswith(("output_text", "content_part"))]
    assert calls[:3] == ["output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta"]
    after = [name for name in calls[2:] if name != "mcp_call_arguments.delta"]
    assert after[:3] == ["mcp_call_arguments.done", "mcp_call.completed", "output_item.done"]
    response = events[-1]["response"]
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    assert [item["id"] for item in response["output"]] == [
        event["item"]["id"] for event in events if event["type"] == "response.output_item.done"
    ]


def test_several_calls_of_one_turn_and_several_turns(app: App, runner: FakeRunner) -> None:
    response = whole(app, "[[sandbox: tools=3, tool-rounds=4]]")

    assert kinds(response) == ["mcp_list_tools", *["mcp_call"] * 6, "message"]
    assert [each.tool for each in runner.ran][:3] == ["time.now", "time.zones", "time.now"]
    assert len({item["id"] for item in response["output"]}) == 8
    assert app.calls[0]["tools"] == "time.now=4,time.zones=2"


def test_the_conversation_goes_on(app: App, sandbox: Sandbox) -> None:
    before = whole(app, spec(zone="CET"))
    after = whole(app, "And now?", previous_response_id=before["id"], tool_choice="none")

    assert kinds(after) == ["message"]  # the tools are known
    roles = [message["role"] for message in chats(sandbox)[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_items_that_come_back_without_a_store(app: App, sandbox: Sandbox) -> None:
    before = whole(app, spec(zone="CET"), store=False)
    input = [{"role": "user", "content": "Time?"}, *before["output"]]
    input.append({"role": "user", "content": "[[sandbox: no-tools]] thanks"})
    whole(app, input, tools=[], store=False)

    call, output = chats(sandbox)[-1]["messages"][1:3]
    assert call["tool_calls"][0]["function"]["name"] == "time__now"
    assert output["content"] == "now(zone=CET) is done"


# --- what goes wrong -----------------------------------------------------------------------------


def test_a_tool_that_fails_is_told_to_the_model(sandbox: Sandbox) -> None:
    runner = FakeRunner(does=lambda tool, given: ToolResult("no such zone", is_error=True))
    with in_front_of(sandbox, runner) as app:
        response = whole(app)

    call = response["output"][1]
    assert (call["status"], call["output"]) == ("failed", None)
    assert call["error"]["type"] == "mcp_tool_execution_error"
    assert call["error"]["content"] == [{"type": "text", "text": "no such zone"}]
    assert "The tool failed: no such zone" in text_of(response)
    assert response["status"] == "completed"


def test_arguments_that_are_none_are_told_to_the_model(app: App, runner: FakeRunner) -> None:
    response = whole(app, "[[sandbox: tool-args=%5B1%5D]]")

    call = response["output"][1]
    assert (call["status"], call["error"]["code"]) == ("failed", -32602)
    assert "must be a JSON object" in text_of(response)
    assert runner.ran == []


def test_a_runner_that_is_down_is_told_to_the_client(app: App, runner: FakeRunner) -> None:
    runner.down = "its process has ended. Look at `journalctl -u qwen-proxy-tools`."
    answer = post(app)

    assert answer.status_code == 503
    assert error_of(answer)["code"] == "tools_unavailable"
    assert "its process has ended" in error_of(answer)["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_runner_that_ends_meanwhile_fails_the_response(sandbox: Sandbox, stream: bool) -> None:
    def dies(tool: ServerTool, given: Any) -> ToolResult:
        raise RunnerUnavailable("it ended.")

    with in_front_of(sandbox, FakeRunner(does=dies)) as app:
        answer = post(app, stream=stream)
        if not stream:
            assert (answer.status_code, error_of(answer)["code"]) == (503, "tools_unavailable")
            return
        last = events_of(answer)[-1]

    assert last["type"] == "response.failed"
    assert "it ended." in last["response"]["error"]["message"]
    assert last["response"]["output"][1]["status"] == "incomplete"


def test_the_rounds_of_an_answer_are_bounded(sandbox: Sandbox, runner: FakeRunner) -> None:
    with in_front_of(sandbox, runner, QWEN_PROXY_TOOL_ROUNDS=2) as app:
        response = whole(app, "[[sandbox: tool-rounds=50]]")

    assert (response["status"], len(runner.ran)) == ("incomplete", 2)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    calls = [item for item in response["output"] if item["type"] == "mcp_call"]
    assert [call["status"] for call in calls] == ["completed", "completed", "failed"]
    assert "limit of 2 rounds" in text_of(response)


def test_the_time_of_an_answers_tools_is_bounded(sandbox: Sandbox) -> None:
    clock = FakeClock()

    def slow(tool: ServerTool, given: Any) -> ToolResult:
        clock.advance(20)
        return ToolResult("done", is_error=False)

    runner = FakeRunner(does=slow)
    with in_front_of(sandbox, runner, clock=clock, QWEN_PROXY_TOOL_TIME="30s") as app:
        response = whole(app, "[[sandbox: tool-rounds=50]]")

    assert [each.seconds for each in runner.ran] == [30, 10]
    assert "30 s, is over" in text_of(response)


def test_the_clients_own_bound(app: App, runner: FakeRunner) -> None:
    response = whole(app, "[[sandbox: tools=3]]", max_tool_calls=2)

    calls = [item for item in response["output"] if item["type"] == "mcp_call"]
    assert [call["status"] for call in calls] == ["completed", "completed", "failed"]
    assert "the limit is 2" in calls[2]["error"]["message"]
    assert len(runner.ran) == 2


# --- which tools ---------------------------------------------------------------------------------


def test_without_a_runner_nothing_changes(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, None) as app:
        answer = post(app, tools=[TIME, CODE])

    assert answer.headers["x-qwen-proxy-changed"].startswith("tools:mcp-dropped")
    assert kinds(answer.get_json()) == ["message"]


@pytest.mark.parametrize(
    ("tool", "status", "param", "words"),
    [
        ({"server_label": "clock"}, 400, "tools[0].server_label", "It offers you: files, python"),
        ({"server_url": "https://mcp.example"}, 400, "tools[0].server_url", "yours another one"),
        (
            {"server_label": "mine", "server_url": "https://mcp.example"},
            400,
            "tools[0].server_url",
            "Ask the operator to, or leave the address out",
        ),
        ({"connector_id": "connector_gmail"}, 400, "tools[0].connector_id", "OpenAI's"),
        ({"allowed_tools": ["then"]}, 400, "tools[0].allowed_tools", "It has: now, zones"),
        ({"allowed_tools": "now"}, 400, "tools[0].allowed_tools", "array of strings"),
        ({"require_approval": "maybe"}, 400, "tools[0].require_approval", "never"),
        ({"server_label": "broken"}, 503, "tools[0].server_label", "it did not start"),
    ],
)
def test_tools_that_are_refused(
    sandbox: Sandbox, tool: dict[str, Any], status: int, param: str, words: str
) -> None:
    with in_front_of(sandbox, FakeRunner(troubles={"broken": "it did not start."})) as app:
        answer = post(app, tools=[{**TIME, **tool}])

    assert answer.status_code == status
    assert error_of(answer)["param"] == param
    assert words in error_of(answer)["message"]


@pytest.mark.parametrize("chosen", [["zones"], {"tool_names": ["zones"]}])
def test_only_the_allowed_tools_are_offered(app: App, sandbox: Sandbox, chosen: Any) -> None:
    url = "qwen-proxy://time"
    response = whole(app, tools=[{**TIME, "allowed_tools": chosen, "server_url": url}])

    assert [tool["name"] for tool in response["output"][0]["tools"]] == ["zones"]
    assert [tool["function"]["name"] for tool in chats(sandbox)[0]["tools"]] == ["time__zones"]


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"type": "mcp", "server_label": "time", "name": "zones"}, ["mcp_call"]),
        ({"type": "mcp", "server_label": "time"}, ["mcp_call"]),
        ({"type": "code_interpreter"}, ["code_interpreter_call"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [TIME]}, ["mcp_call"]),
        ("none", []),
    ],
)
def test_a_tool_is_chosen(app: App, sandbox: Sandbox, choice: Any, called: list[str]) -> None:
    response = whole(app, tools=[WEATHER, TIME, CODE], tool_choice=choice)

    assert kinds(response) == ["mcp_list_tools", *called, "message"]
    if called:
        later = chats(sandbox)[1]
        assert "tool_choice" not in later
        is_forced = choice["type"] in ("mcp", "code_interpreter")
        assert len(later["tools"]) == (4 if is_forced else 2)


def test_functions_of_the_client_keep_their_names(app: App, sandbox: Sandbox) -> None:
    mine = {**WEATHER, "name": "time__now"}
    response = whole(app, tools=[mine, TIME], tool_choice={"type": "function", "name": "time__now"})

    assert kinds(response) == ["mcp_list_tools", "function_call"]
    names = [tool["function"]["name"] for tool in chats(sandbox)[0]["tools"]]
    assert names[0] == "time__now"
    assert len(set(names)) == 3
    assert all(len(name) <= 64 for name in names)


def test_names_and_texts_of_hostile_servers(sandbox: Sandbox) -> None:
    hidden = "Tells\u202e it\x00 all. " + "x" * 5000
    odd = ServerTool("time", "what time is it? " * 10, hidden, {"type": "array"}, trust=True)
    large = ServerTool("time", "l", "", {"type": "object", "title": "y" * 40_000}, trust=True)
    with in_front_of(sandbox, FakeRunner(odd, large)) as app:
        answer = post(app)
        assert "tools" in answer.headers["x-qwen-proxy-changed"]
        assert kinds(answer.get_json()) == ["mcp_list_tools", "mcp_call", "message"]

    (tool,) = chats(sandbox)[0]["tools"]
    function = tool["function"]
    assert len(function["name"]) <= 64
    assert function["description"].startswith("Tells it all. ")
    assert len(function["description"]) == 2048
    assert function["parameters"] == {"type": "object", "properties": {}}


def test_too_many_tools(sandbox: Sandbox) -> None:
    many = [ServerTool("time", f"t{n}", "", {"type": "object"}, trust=True) for n in range(129)]
    with in_front_of(sandbox, FakeRunner(*many)) as app:
        answer = post(app)

    assert error_of(answer)["code"] == "too_many_tools"


def test_mixed_calls_end_the_response_for_the_client(app: App, sandbox: Sandbox) -> None:
    tools = [{**TIME, "allowed_tools": ["now"]}, WEATHER]
    response = whole(app, "[[sandbox: tools=2]]", tools=tools)

    assert kinds(response) == ["mcp_list_tools", "mcp_call", "function_call"]
    assert [item.get("status") for item in response["output"][1:]] == ["completed", "completed"]
    output = {"type": "function_call_output", "output": "sunny"}
    output["call_id"] = response["output"][2]["call_id"]
    following = whole(app, [output], tools=tools, previous_response_id=response["id"])
    assert kinds(following) == ["message"]
    assert [message["role"] for message in chats(sandbox)[-1]["messages"][1:]] == [
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]


# --- approvals -----------------------------------------------------------------------------------


def asked(app: App, **members: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A response that asks for an approval, and the question."""
    response = whole(app, spec(zone="CET"), **{"tools": [FILES], **members})
    assert kinds(response)[-1] == "mcp_approval_request"
    return response, response["output"][-1]


def answered(request: dict[str, Any], *, approve: bool, **more: Any) -> dict[str, Any]:
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": approve,
        **more,
    }


def test_without_trust_the_client_is_asked(app: App, sandbox: Sandbox, runner: FakeRunner) -> None:
    response, request = asked(app)

    assert (request["server_label"], request["name"]) == ("files", "write")
    assert json.loads(request["arguments"]) == {"zone": "CET"}
    assert (response["status"], runner.ran, len(chats(sandbox))) == ("completed", [], 1)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_an_approved_call_is_carried_out_first(
    app: App, sandbox: Sandbox, runner: FakeRunner, store: bool, stream: bool
) -> None:
    before, request = asked(app, store=store)
    answer = answered(request, approve=True)
    said = [{"role": "user", "content": spec(zone="CET")}, *before["output"]]
    more: dict[str, Any] = {"previous_response_id": before["id"]} if store else {}
    after = post(app, [answer] if store else [*said, answer], tools=[FILES], stream=stream, **more)
    response = events_of(after)[-1]["response"] if stream else after.get_json()

    Response.model_validate(response)
    assert kinds(response) == ["mcp_call", "message"]
    call = response["output"][0]
    assert call["approval_request_id"] == request["id"]
    assert (call["status"], call["output"]) == ("completed", "write(zone=CET) is done")
    assert [each.tool for each in runner.ran] == ["files.write"]
    messages = chats(sandbox)[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[-1]["content"] == "write(zone=CET) is done"


def test_after_an_approval_the_conversation_goes_on(
    app: App, sandbox: Sandbox, runner: FakeRunner
) -> None:
    before, request = asked(app)
    answer = answered(request, approve=True)
    second = whole(app, [answer], tools=[FILES], previous_response_id=before["id"])
    again = [answered(request, approve=True), {"role": "user", "content": "[[sandbox: no-tools]]"}]
    whole(app, again, tools=[FILES], previous_response_id=second["id"])

    assert len(runner.ran) == 1  # it was carried out already
    roles = [message["role"] for message in chats(sandbox)[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_a_refused_call_does_not_run(app: App, sandbox: Sandbox, runner: FakeRunner) -> None:
    before, request = asked(app)
    answer = answered(request, approve=False, reason="Not that file")
    response = whole(app, [answer], tools=[FILES], previous_response_id=before["id"])

    assert (kinds(response), runner.ran) == (["message"], [])
    told = chats(sandbox)[-1]["messages"][-1]["content"]
    assert "has refused this call" in told
    assert "Not that file" in told


def test_a_question_without_an_answer(app: App, sandbox: Sandbox, runner: FakeRunner) -> None:
    before, _ = asked(app)
    said = "[[sandbox: no-tools]] Never mind"
    whole(app, said, tools=[FILES], previous_response_id=before["id"])

    assert "has not approved" in chats(sandbox)[-1]["messages"][2]["content"]
    assert runner.ran == []


@pytest.mark.parametrize(
    ("asks", "runs"),
    [
        ("never", ["files.write"]),
        ("always", []),
        ({"never": {"tool_names": ["write"]}}, ["files.write"]),
        ({"never": {"tool_names": ["read"]}}, []),
        (
            {"always": {"tool_names": ["write"]}, "never": {"tool_names": ["write"]}},
            [],
        ),
    ],
)
def test_the_clients_own_word(app: App, runner: FakeRunner, asks: Any, runs: list[str]) -> None:
    whole(app, spec(zone="CET"), tools=[{**FILES, "require_approval": asks}])

    assert [each.tool for each in runner.ran] == runs


def test_trusted_tools_may_be_asked_for_too(app: App, runner: FakeRunner) -> None:
    tool = {**TIME, "require_approval": {"always": {"tool_names": ["now"]}}}
    response = whole(app, tools=[tool])

    assert kinds(response) == ["mcp_list_tools", "mcp_approval_request"]
    assert runner.ran == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"approval_request_id": "mcpr_other_1"}, "approval_request_not_found"),
        ({"approve": "yes"}, "invalid_type"),
    ],
)
def test_answers_that_belong_to_nothing(app: App, change: dict[str, Any], code: str) -> None:
    before, request = asked(app)
    answer = {**answered(request, approve=True), **change}
    refused = post(app, [answer], tools=[FILES], previous_response_id=before["id"])

    assert refused.status_code == 400
    assert error_of(refused)["code"] == code


def test_an_approved_tool_must_be_offered_again(app: App, runner: FakeRunner) -> None:
    before, request = asked(app)
    answer = [answered(request, approve=True)]
    refused = post(app, answer, tools=[TIME], previous_response_id=before["id"])

    assert error_of(refused)["code"] == "tool_not_offered"
    assert runner.ran == []


# --- servers that the client brings --------------------------------------------------------------

MINE: dict[str, Any] = {
    "type": "mcp",
    "server_label": "mine",
    "server_url": "https://mcp.example/mcp?key=hidden",
    "authorization": "hidden-token",
    "headers": {"X-Key": "hidden"},
}


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_of_the_client_is_used_and_its_secrets_stay_with_it(
    sandbox: Sandbox, stream: bool
) -> None:
    runner = FakeRunner(hosts=["mcp.example"])
    with in_front_of(sandbox, runner) as app:
        answer = post(app, tools=[{**MINE, "require_approval": "never"}], stream=stream)
        response = events_of(answer)[-1]["response"] if stream else response_of(answer)
        input = app.client.get(f"/v1/responses/{response['id']}/input_items").get_data(True)
        kept = app.client.get(f"/v1/responses/{response['id']}").get_data(True)

    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    assert response["output"][1]["server_label"] == "mine"
    assert runner.ran[0].tool == "mine.now"
    assert runner.asked[0].headers["Authorization"] == "Bearer hidden-token"
    (tool,) = response["tools"]
    assert tool["server_url"] == "https://mcp.example/<redacted>"
    assert "hidden" not in str([response, input, kept, chats(sandbox), app.calls])


def test_without_a_word_the_client_is_asked_also_for_its_own_server(sandbox: Sandbox) -> None:
    runner = FakeRunner(hosts=["mcp.example"])
    with in_front_of(sandbox, runner) as app:
        first, request = asked(app, tools=[MINE])
        assert not runner.ran
        second = whole(
            app, [answered(request, approve=True)], tools=[MINE], previous_response_id=first["id"]
        )

    assert kinds(second) == ["mcp_call", "message"]
    assert runner.ran[0].tool == "mine.now"
    assert len(runner.asked) == 2


def test_secrets_are_not_stored_for_a_response_in_the_background(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, FakeRunner(hosts=["mcp.example"])) as app:
        error = error_of(post(app, tools=[MINE], background=True))

    assert (error["param"], error["code"]) == ("background", "unsupported_value")
    assert "Leave 'background' out" in error["message"]


def test_tools_of_items_bring_no_servers(sandbox: Sandbox) -> None:
    more = {"type": "additional_tools", "tools": [MINE]}
    with in_front_of(sandbox, FakeRunner(hosts=["mcp.example"])) as app:
        error = error_of(post(app, [more, {"role": "user", "content": "hello"}]))

    assert "must be a tool of the request itself" in error["message"]


# --- code ----------------------------------------------------------------------------------------


def test_code_is_run(sandbox: Sandbox) -> None:
    def plots(tool: ServerTool, given: Any) -> ToolResult:
        return ToolResult("42", is_error=False, images=(ToolImage("image/png", b"PNG"),))

    runner = FakeRunner(does=plots)
    with in_front_of(sandbox, runner) as app:
        events = events_of(post(app, spec(code="print(42)"), tools=[CODE], stream=True))
        response = events[-1]["response"]
        before = response["id"]
        again = whole(app, spec(code="x"), tools=[CODE], previous_response_id=before)

    names = [event["type"] for event in events if "code_interpreter" in event["type"]]
    assert [name.removeprefix("response.code_interpreter_call") for name in names] == [
        ".in_progress",
        "_code.delta",
        "_code.done",
        ".interpreting",
        ".completed",
    ]
    call = response["output"][0]
    assert (call["type"], call["code"], call["status"]) == (
        "code_interpreter_call",
        "print(42)",
        "completed",
    )
    assert call["outputs"] == [
        {"type": "logs", "logs": "42"},
        {"type": "image", "url": "data:image/png;base64,UE5H"},
    ]
    assert again["output"][0]["container_id"] == call["container_id"]
    assert runner.ran[0].container == runner.ran[1].container != None  # noqa: E711
    told = chats(sandbox)[1]["messages"][-1]["content"]
    assert told == "42\n[1 picture, which the user sees]"


def test_containers_belong_to_their_clients(sandbox: Sandbox, runner: FakeRunner) -> None:
    keys = {"QWEN_PROXY_API_KEYS": "a-client-key-of-16,b-client-key-of-16"}
    tool = {"type": "code_interpreter", "container": "cntr_mine"}
    with in_front_of(sandbox, runner, **keys) as app:
        for key in ("a-client-key-of-16", "b-client-key-of-16"):
            body = {"model": CHAT, "input": spec(code="1"), "tools": [tool]}
            answer = app.client.post(
                "/v1/responses", json=body, headers={"authorization": f"Bearer {key}"}
            )
            assert answer.status_code == 200, answer.text
            assert answer.get_json()["output"][0]["container_id"] == "cntr_mine"

    first, second = (each.container for each in runner.ran)
    assert first != second


def test_the_tools_of_this_file() -> None:
    assert [tool.trust for tool in (NOW, ZONES, WRITE, PYTHON)] == [True, True, False, False]
