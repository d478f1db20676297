"""The Responses tool `image_generation` without a server of its own, in front of the sandbox."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.limits import Limits
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.tools.pictures import MOST_PICTURES
from qwen_wsgi.tools.relay import MOST_TURNS
from tests.api import tool_calls
from tests.api.apps import App, error_of
from tests.api.responding import events_of, kinds, response_of
from tests.api.tool_calls import arguments, chats

CHAT = "qwen3.7-plus"
IMAGES = "qwen-image-3.0"
TOOL = {"type": "image_generation"}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA"
    "60e6kgAAAABJRU5ErkJggg=="
)


@contextmanager
def in_front_of(sandbox: Sandbox, **environ: Any) -> Iterator[App]:
    settings = {"QWEN_PROXY_IMAGE_MODEL": IMAGES, **environ}
    with tool_calls.in_front_of(sandbox, **settings) as app:
        yield app


@pytest.fixture
def app(sandbox: Sandbox) -> Iterator[App]:
    with in_front_of(sandbox) as made:
        yield made


def post(app: App, input: Any = "A cat, please", **members: Any) -> TestResponse:
    body = {"model": CHAT, "input": input, "tools": [TOOL], **members}
    return app.client.post("/v1/responses", json=body)


def whole(app: App, input: Any = "A cat, please", **members: Any) -> dict[str, Any]:
    return response_of(post(app, input, **members))


def asked(sandbox: Sandbox, route: str) -> list[Any]:
    return [json.loads(r.body or b"{}") for r in sandbox.settle() if r.route == route]


def pictures(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == "image_generation_call"]


# --- an answer -----------------------------------------------------------------------------------


def test_a_picture_and_a_text(app: App, sandbox: Sandbox) -> None:
    response = whole(app)

    picture, message = response["output"]
    assert base64.b64decode(picture["result"]).startswith(b"\x89PNG")
    assert (picture["status"], picture["action"]) == ("completed", "generate")
    assert picture["revised_prompt"] == "sandbox prompt"
    assert "The tool answered: The picture was made" in message["content"][0]["text"]
    (made,) = asked(sandbox, "generation")
    assert (made["model"], made["parameters"]) == (IMAGES, {})
    first, second = chats(sandbox)
    assert first["tools"][0]["function"]["name"] == "image_generation"
    call, output = second["messages"][-2:]
    assert call["tool_calls"][0]["function"]["name"] == "image_generation"
    assert output["tool_call_id"] == call["tool_calls"][0]["id"]
    assert picture["result"] not in json.dumps(second)


def test_what_is_recorded_of_several_turns(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: prompt-tokens=100, completion-tokens=7]] A cat")

    (call,) = app.calls
    assert (call["pictures"], call["attempts"], call["outcome"]) == (1, 3, "complete")
    assert (call["prompt_tokens"], call["completion_tokens"]) == (200, 14)
    assert "stream" not in call
    assert response["usage"]["input_tokens"] == 200
    assert response["usage"]["output_tokens"] == 14
    assert app.services.admission.in_flight == 0


def test_a_stream_has_its_events_in_order(app: App, sandbox: Sandbox) -> None:
    events = events_of(post(app, "[[sandbox: think]] A cat", stream=True))

    names = [event["type"].removeprefix("response.") for event in events]
    after = names.index("output_item.added", names.index("output_item.done"))
    assert names[:2] == ["created", "in_progress"]
    assert names[after : after + 5] == [
        "output_item.added",
        "image_generation_call.in_progress",
        "image_generation_call.generating",
        "image_generation_call.completed",
        "output_item.done",
    ]
    assert not [name for name in names if name.startswith("function_call")]
    assert names[-1] == "completed"
    assert names.count("completed") == 1
    response = events[-1]["response"]
    assert kinds(response) == ["reasoning", "image_generation_call", "reasoning", "message"]
    assert [item["id"] for item in response["output"]] == [
        event["item"]["id"] for event in events if event["type"] == "response.output_item.done"
    ]
    assert app.calls[0]["stream"] is True


def test_no_picture_is_wanted(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: no-tools]] Hello")

    assert kinds(response) == ["message"]
    assert len(chats(sandbox)) == 1
    assert "pictures" not in app.calls[0]


def test_tasks_make_pictures_too(app: App, sandbox: Sandbox) -> None:
    args = arguments(prompt="a cat [[sandbox: task-looks=1]]")
    tool = {**TOOL, "model": "wan2.5-t2i-preview", "size": "1024x1024"}
    (picture,) = pictures(whole(app, f"[[sandbox: {args}]]", tools=[tool]))

    assert picture["status"] == "completed"
    assert picture["revised_prompt"].endswith(", in detail")


# --- which model ---------------------------------------------------------------------------------


def test_without_a_model_the_tool_is_dropped(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, QWEN_PROXY_IMAGE_MODEL="") as app:
        answer = post(app)
        forced = post(app, tool_choice=TOOL)
        named = whole(app, tools=[{**TOOL, "model": IMAGES}])

    assert "tools:image_generation-dropped" in answer.headers["x-qwen-proxy-changed"]
    assert kinds(answer.get_json()) == ["message"]
    assert forced.status_code == 400
    assert "QWEN_PROXY_IMAGE_MODEL" in error_of(forced)["message"]
    assert kinds(named) == ["image_generation_call", "message"]


def test_strict_mode_loses_nothing(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, QWEN_PROXY_IMAGE_MODEL="", QWEN_PROXY_STRICT="1") as app:
        assert post(app).status_code == 400
    with in_front_of(sandbox, QWEN_PROXY_STRICT="1") as app:
        assert post(app, tools=[{**TOOL, "quality": "high"}]).status_code == 400
        assert post(app, tools=[{**TOOL, "model": "gpt-image-2"}]).status_code == 400


def test_what_no_model_has_is_named(app: App) -> None:
    tool = {**TOOL, "model": "gpt-image-2", "quality": "high", "partial_images": 2}
    answer = post(app, tools=[{**tool, "output_format": "webp", "n": 2, "moderation": "auto"}])

    changed = answer.headers["x-qwen-proxy-changed"]
    for what in (f"model:{IMAGES}", "quality-dropped", "partial_images-dropped", "n-dropped"):
        assert f"tools:image_generation-{what}" in changed
    assert "image_generation-output_format-dropped" in changed
    assert "moderation" not in changed
    assert pictures(answer.get_json())[0]["status"] == "completed"


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"input_image_mask": {"image_url": PIXEL}}, "tools[0].input_image_mask"),
        ({"action": "redraw"}, "tools[0].action"),
        ({"action": "edit"}, "tools"),  # there is no picture
        ({"action": "edit", "model": "z-image-turbo"}, "tools[0].action"),
        ({"size": "huge"}, "size"),
    ],
)
def test_tools_that_are_refused(app: App, tool: dict[str, Any], param: str) -> None:
    answer = post(app, tools=[{**TOOL, **tool}])

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_the_size_is_the_clients_or_the_models(app: App, sandbox: Sandbox) -> None:
    spec = arguments(prompt="a cat", size="1536x1024")
    whole(app, f"[[sandbox: {spec}]]")
    whole(app, f"[[sandbox: {spec}]]", tools=[{**TOOL, "size": "1024x1024"}])

    sizes = [made["parameters"]["size"] for made in asked(sandbox, "generation")]
    assert sizes == ["1536*1024", "1024*1024"]
    offered = [chat["tools"][0]["function"]["parameters"]["properties"] for chat in chats(sandbox)]
    assert ["size" in each for each in offered] == [True, True, False, False]


# --- tool_choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        TOOL,
        {"type": "allowed_tools", "mode": "required", "tools": [TOOL]},
    ],
)
def test_forced_the_first_turn_only(app: App, sandbox: Sandbox, choice: Any) -> None:
    response = whole(app, tools=[WEATHER, TOOL], tool_choice=choice)

    assert kinds(response) == ["image_generation_call", "message"]
    first, second = chats(sandbox)
    assert "tool_choice" not in second
    names = [tool["function"]["name"] for tool in first["tools"]]
    assert "image_generation" in names


def test_required_and_not_allowed(app: App, sandbox: Sandbox) -> None:
    required = whole(app, tool_choice="required")
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{**WEATHER}]}
    other = whole(app, tools=[TOOL, WEATHER], tool_choice=allowed)
    none = whole(app, tool_choice="none")
    missing = post(app, tools=[WEATHER], tool_choice=TOOL)

    assert kinds(required) == ["image_generation_call", "message"]
    assert kinds(other) == ["function_call"]
    assert kinds(none) == ["message"]
    assert missing.status_code == 400
    assert "not found in 'tools'" in error_of(missing)["message"]


def test_a_function_of_the_client_with_the_same_name(app: App, sandbox: Sandbox) -> None:
    mine = {**WEATHER, "name": "image_generation"}
    response = whole(
        app, tools=[mine, TOOL], tool_choice={"type": "function", "name": mine["name"]}
    )

    assert kinds(response) == ["function_call"]
    (chat,) = chats(sandbox)
    names = [tool["function"]["name"] for tool in chat["tools"]]
    assert names[0] == "image_generation"
    assert names[1] != names[0]
    assert kinds(whole(app, tools=[mine, TOOL], tool_choice=TOOL))[0] == "image_generation_call"


# --- bounds --------------------------------------------------------------------------------------


def test_pictures_of_an_answer_are_bounded(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: tools=7]] many")

    states = [item["status"] for item in pictures(response)]
    assert states == ["completed"] * MOST_PICTURES + ["failed"] * 3
    assert "the limit is 4" in pictures(response)[-1]["error"]["message"]
    assert len(asked(sandbox, "generation")) == MOST_PICTURES
    last = chats(sandbox)[-1]
    assert "tools" not in last
    assert response["output"][-1]["type"] == "message"


def test_the_clients_own_bound(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: tools=2]]", max_tool_calls=1)

    assert [item["status"] for item in pictures(response)] == ["completed", "failed"]


def test_turns_of_an_answer_are_bounded(app: App, sandbox: Sandbox) -> None:
    spec = f"tool-rounds=50, {arguments(prompt='')}"
    response = whole(app, f"[[sandbox: {spec}]] circles", tools=[TOOL, WEATHER])

    assert len(chats(sandbox)) <= MOST_TURNS
    assert len(asked(sandbox, "generation")) == 0
    assert {item["status"] for item in pictures(response)} == {"failed"}


def test_several_rounds(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: tool-rounds=2, tool-no-id]] twice")

    assert kinds(response) == ["image_generation_call", "image_generation_call", "message"]
    assert len({item["id"] for item in response["output"]}) == 3
    assert app.calls[0]["pictures"] == 2


# --- with the client's own tools -----------------------------------------------------------------


def test_mixed_calls_end_the_response_for_the_client(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: tools=2]] both", tools=[TOOL, WEATHER])

    assert kinds(response) == ["image_generation_call", "function_call"]
    assert [item["status"] for item in response["output"]] == ["completed", "completed"]
    assert len(chats(sandbox)) == 1
    output = {"type": "function_call_output", "output": "sunny"}
    output["call_id"] = response["output"][1]["call_id"]
    following = whole(app, [output], tools=[TOOL, WEATHER], previous_response_id=response["id"])
    assert kinds(following) == ["message"]
    messages = chats(sandbox)[-1]["messages"]
    assert [message["role"] for message in messages[1:]] == ["assistant", "tool"] * 2


# --- pictures that are changed -------------------------------------------------------------------


def edited(sandbox: Sandbox) -> list[str]:
    """The pictures that went into the latest picture."""
    content = asked(sandbox, "generation")[-1]["input"]["messages"][0]["content"]
    return [part["image"] for part in content if "image" in part]


def test_the_users_picture_is_changed(app: App, sandbox: Sandbox) -> None:
    content = [
        {"type": "input_text", "text": f"[[sandbox: {arguments(prompt='snow', action='edit')}]]"},
        {"type": "input_image", "image_url": PIXEL},
    ]
    response = whole(app, [{"role": "user", "content": content}])

    assert pictures(response)[0]["action"] == "edit"
    assert edited(sandbox) == [PIXEL]


@pytest.mark.parametrize("how", ["previous", "item", "id", "reference"])
def test_a_picture_made_before_is_changed(app: App, sandbox: Sandbox, how: str) -> None:
    before = whole(app)
    picture = pictures(before)[0]
    text = f"[[sandbox: {arguments(prompt='snow', action='edit')}]]"
    said = {"role": "user", "content": text}
    first = {"role": "user", "content": "A cat"}
    bare = {"type": "image_generation_call", "id": picture["id"]}
    input: Any = {
        "previous": text,
        "item": [first, picture, said],
        "id": [first, bare, said],
        "reference": [first, {"type": "item_reference", "id": picture["id"]}, said],
    }[how]
    more = {"previous_response_id": before["id"]} if how == "previous" else {}
    after = whole(app, input, **more)

    assert pictures(after)[0]["action"] == "edit"
    assert edited(sandbox) == ["data:image/png;base64," + picture["result"]]
    assert picture["result"] not in json.dumps(chats(sandbox))


def test_a_picture_of_the_same_answer_is_changed(app: App, sandbox: Sandbox) -> None:
    tool = {**TOOL, "model": "qwen-image-2.1-pro"}
    spec = f"tool-rounds=2, {arguments(prompt='snow', action='edit')}"
    content = [{"type": "input_image", "image_url": PIXEL}, {"type": "input_text", "text": "x"}]
    content[1]["text"] = f"[[sandbox: {spec}]]"
    response = whole(app, [{"role": "user", "content": content}], tools=[tool])

    first, second = pictures(response)
    assert (first["action"], second["action"]) == ("edit", "edit")
    assert edited(sandbox) == ["data:image/png;base64," + first["result"]]


def test_nothing_to_change_is_told_to_the_model(app: App, sandbox: Sandbox) -> None:
    response = whole(app, f"[[sandbox: {arguments(prompt='snow', action='edit')}]]")

    (picture,) = pictures(response)
    assert (picture["status"], picture["result"]) == ("failed", None)
    assert "no picture that could be changed" in response["output"][-1]["content"][0]["text"]


def test_a_model_that_only_changes(app: App, sandbox: Sandbox) -> None:
    tool = {**TOOL, "model": "qwen-image-edit-plus"}
    content = [{"type": "input_image", "image_url": PIXEL}] * 5
    response = whole(app, [{"role": "user", "content": content}], tools=[tool])

    assert pictures(response)[0]["action"] == "edit"
    assert len(edited(sandbox)) == 3  # more it does not take


# --- items that come back ------------------------------------------------------------------------


def test_items_without_the_tool_are_read(sandbox: Sandbox) -> None:
    made = {"type": "image_generation_call", "id": "ig_1", "result": "QUJD", "status": "completed"}
    lost = {"type": "image_generation_call", "id": "ig_2", "status": "failed", "result": None}
    with in_front_of(sandbox, QWEN_PROXY_STRICT="1") as app:
        whole(app, [{"role": "user", "content": "x"}, made, lost, made | {"role": "x"}], tools=[])

    messages = chats(sandbox)[0]["messages"]
    outputs = [message["content"] for message in messages if message["role"] == "tool"]
    assert outputs[0].startswith("The picture was made")
    assert outputs[1].startswith("The picture was not made: the reason is not known")
    assert "QUJD" not in json.dumps(messages)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("inspection", "inappropriate"),
        ("partial=1", "without a picture"),
        ("throttle", ""),
        ("result-bytes=2000000", "larger than"),
    ],
)
def test_a_picture_that_fails(sandbox: Sandbox, spec: str, words: str, stream: bool) -> None:
    args = arguments(prompt=f"a cat [[sandbox: {spec}]]")
    with in_front_of(sandbox, QWEN_PROXY_MAX_ANSWER="1m") as app:
        answer = post(app, f"[[sandbox: {args}]]", stream=stream)
        response = events_of(answer)[-1]["response"] if stream else answer.get_json()
        (call,) = app.calls

    (picture,) = pictures(response)
    assert (response["status"], picture["status"]) == ("completed", "failed")
    assert words in picture["error"]["message"]
    assert picture["error"]["message"] in response["output"][-1]["content"][0]["text"]
    assert call["outcome"] == "complete"
    assert "pictures" not in call


@pytest.mark.parametrize("args", ["{", '["cat"]', '{"prompt": 3}', ""])
def test_arguments_that_are_none(app: App, sandbox: Sandbox, args: str) -> None:
    response = whole(app, f"[[sandbox: tool-args={quote(args)}]]")

    assert pictures(response)[0]["status"] == "failed"
    assert not asked(sandbox, "generation")


def test_a_call_that_was_cut_is_not_carried_out(app: App, sandbox: Sandbox) -> None:
    response = whole(app, "[[sandbox: finish=length]]")

    assert (response["status"], pictures(response)[0]["status"]) == ("incomplete", "failed")
    assert not asked(sandbox, "generation")


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_turn_that_fails_leaves_the_picture(sandbox: Sandbox, stream: bool) -> None:
    with in_front_of(sandbox) as app:
        sandbox.control(next=[{"spec": "size=1000"}, {"spec": "error=internal_error"}])
        answer = post(app, stream=stream)
        response = events_of(answer)[-1]["response"] if stream else answer.get_json()
        (call,) = app.calls
        in_flight = app.services.admission.in_flight

    assert (answer.status_code, response["status"], in_flight) == (200, "failed", 0)
    assert response["error"]["code"] == "server_error"
    assert pictures(response)[0]["status"] == "completed"
    assert (call["status"], call["outcome"], call["pictures"]) == (200, "upstream_error", 1)


def test_a_second_turn_that_fails_after_no_picture(sandbox: Sandbox) -> None:
    with in_front_of(sandbox) as app:
        args = arguments(prompt="a cat [[sandbox: inspection]]")
        sandbox.control(next=[{"spec": args}, {"spec": "error=internal_error"}])
        answer = post(app)
        (call,) = app.calls

    assert (answer.status_code, call["outcome"]) == (500, "upstream_error")


def test_in_the_background(sandbox: Sandbox, tmp_path: Path) -> None:
    with in_front_of(sandbox, QWEN_PROXY_STATE_DIR=str(tmp_path)) as app:
        id = post(app, background=True).get_json()["id"]
        app.services.background.look()
        app.services.background.wait(5)
        response = app.client.get(f"/v1/responses/{id}").get_json()

    assert (response["status"], kinds(response)) == (
        "completed",
        ["image_generation_call", "message"],
    )


@pytest.mark.parametrize("stream", [False, True])
def test_each_turn_and_each_picture_counts_and_none_is_refused_once_it_began(
    sandbox: Sandbox, stream: bool
) -> None:
    limits = Limits(rpm=1, tpm=100_000, concurrency=1)
    client = Client("local", "local")
    with in_front_of(sandbox, limits_of=lambda client: limits) as app:
        with post(app, stream=stream, max_output_tokens=500) as answer:
            assert answer.status_code == 200, answer.data
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert b"completed" in answer.data
        used = limits._replace(rpm=10)
        rooms = app.services.budgets.counters.of(client.id).remaining(used)
        refused = post(app)
        (line, _) = app.calls

    # A turn, the picture, and the turn that tells of it.
    assert 10 - rooms["rpm"].left == 3
    tokens = line["prompt_tokens"] + line["completion_tokens"]
    assert 100_000 - rooms["tpm"].left == tokens
    assert rooms["concurrency"].left == 1
    assert error_of(refused)["code"] == "rate_limit_exceeded"
