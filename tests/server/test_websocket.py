"""Responses over a WebSocket: turns, lanes, conversations, refusals, and their lines in the log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange
from tests.kit.secrets import secret
from tests.kit.websocket_client import MODEL, Socket, text_of
from tests.schemas import check_event

pytestmark = pytest.mark.server

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def sent(sandbox: Sandbox) -> list[Any]:
    """The messages of each chat that the upstream got."""
    sandbox.settle()
    return [json.loads(chat.body or b"")["messages"] for chat in sandbox.chats]


def post(proxy: Proxy, **members: Any) -> dict[str, Any]:
    """The answer to a POST."""
    body = {"model": MODEL, **members}
    with Exchange(proxy.port, body, path="/v1/responses", key=CLIENT_KEY) as exchange:
        found: dict[str, Any] = json.loads(exchange.body())
    return found


def test_turns_follow_each_other_and_send_only_what_is_new(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        first = client.ask("One", store=False, instructions="Be short.")
        second = client.ask("Two", store=False, previous_response_id=first["id"])
        third = client.ask("Three", store=False, previous_response_id=second["id"])

    assert [text_of(each) for each in (first, second, third)] == [
        f"[sandbox] You said: {word}" for word in ("One", "Two", "Three")
    ]
    assert third["previous_response_id"] == second["id"]
    roles = [[message["role"] for message in messages] for messages in sent(sandbox)]
    turn = ["user", "assistant"]
    # Instructions are those of one request (OpenAI's rule).
    assert roles == [["system", "user"], [*turn, "user"], [*turn, *turn, "user"]]


def test_the_events_are_those_of_a_post(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create("Hello [[sandbox: think]]", reasoning={"effort": "high"}, tools=[WEATHER])
        events = client.events()

    for event in events:
        check_event(event)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert not any("stream_id" in event for event in events)


def test_a_tools_output_continues_the_call(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        first = client.ask("Weather? [[sandbox: tools=1]]", store=False, tools=[WEATHER])
        (call,) = [item for item in first["output"] if item["type"] == "function_call"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        second = client.ask(
            [output], store=False, tools=[WEATHER], previous_response_id=first["id"]
        )

    assert "sunny" in text_of(second)


def test_stored_responses_are_those_of_posts(proxy: Proxy, sandbox: Sandbox) -> None:
    stored = post(proxy, input="One")
    with Socket(proxy.port, CLIENT_KEY) as client:
        second = client.ask("Two", previous_response_id=stored["id"])
    third = post(proxy, input="Three", previous_response_id=second["id"])

    assert third["previous_response_id"] == second["id"]
    assert [message["content"] for message in sent(sandbox)[-1]][::2] == ["One", "Two", "Three"]


def test_what_is_stored_may_continue_what_is_not(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        hidden = client.ask("One", store=False)
        stored = client.ask("Two", previous_response_id=hidden["id"])
    last = post(proxy, input="Three", previous_response_id=stored["id"])

    assert last["status"] == "completed"
    assert [message["content"] for message in sent(sandbox)[-1]][::2] == ["One", "Two", "Three"]


def test_only_the_latest_response_of_a_connection_is_remembered(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client, Socket(proxy.port, CLIENT_KEY) as other:
        first = client.ask("One", store=False)
        other.create("Two", store=False, previous_response_id=first["id"])
        refused = other.last()
        client.ask("Another conversation", store=False)
        client.create("Two", store=False, previous_response_id=first["id"])
        forgotten = client.last()
        # The connections go on.
        assert client.ask("Hello", store=False)
        assert other.ask("Hello", store=False)

    for event in (refused, forgotten):
        assert (event["type"], event["status"]) == ("error", 400)
        assert event["error"]["code"] == "previous_response_not_found"
        assert event["error"]["param"] == "previous_response_id"


def test_after_a_failure_the_response_before_can_be_continued(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        first = client.ask("One", store=False)
        for spec in ("inspection", "chunks=9, cut-after=3"):
            client.create(f"[[sandbox: {spec}]]", store=False, previous_response_id=first["id"])
            assert client.last()["type"] in ("error", "response.failed")
        assert client.ask("Two", store=False, previous_response_id=first["id"])


def test_a_request_may_be_kept_without_an_answer(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create(
            [{"role": "developer", "content": "Be short."}],
            store=False,
            generate=False,
            tools=[WEATHER],
        )
        events = client.events()
        warm = events[-1]["response"]
        assert sent(sandbox) == []
        client.ask("One", store=False, previous_response_id=warm["id"])
        bare = client.ask(store=False, generate=False, instructions="No input at all.")
        client.ask("Two", store=False, previous_response_id=bare["id"])

    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    assert warm["output"] == []
    assert [message["content"] for message in sent(sandbox)[0]] == ["Be short.", "One"]
    assert [message["content"] for message in sent(sandbox)[1]] == ["Two"]


def test_requests_of_a_lane_wait_for_each_other(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        for number in range(3):
            client.create(f"[[sandbox: chunks=3, interval=0.05, text=number {number}]]")
        responses = [client.events() for _ in range(3)]

    # `events` would have found a mixture if two had run at a time.
    for number, events in enumerate(responses):
        assert events[0]["type"] == "response.created"
        assert {e["response"]["id"] for e in events if "response" in e} == {
            events[0]["response"]["id"]
        }
        assert text_of(events[-1]["response"]) == f"number {number}"
    sandbox.settle()
    chats = list(sandbox.chats)
    for earlier, later in zip(chats, chats[1:], strict=False):
        assert earlier.ended_s is not None
        assert earlier.ended_s <= later.started_s


def test_lanes_run_beside_each_other(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create("[[sandbox: slow-first=1.5, text=slow]]", stream_id="slow")
        client.create("[[sandbox: text=quick]]", stream_id="quick")
        client.create("[[sandbox: text=none]]")
        last = [client.until("response.completed") for _ in range(3)]

    assert last[2]["stream_id"] == "slow"
    assert {event.get("stream_id"): text_of(event["response"]) for event in last} == {
        "slow": "slow",
        "quick": "quick",
        None: "none",
    }


def test_a_lane_can_branch_off_from_another(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        plan = client.ask("Plan", store=False, stream_id="planner")
        before = {"store": False, "previous_response_id": plan["id"]}
        client.create("Criticise [[sandbox: slow-first=0.5]]", stream_id="critic", **before)
        # The parent stays until the branch has it.
        assert client.receive()["stream_id"] == "critic"
        client.create("Go on", stream_id="planner", **before)
        last = [client.until("response.completed") for _ in range(2)]

    assert {event["stream_id"] for event in last} == {"critic", "planner"}
    assert {messages[0]["content"] for messages in sent(sandbox)} == {"Plan"}


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("{", "invalid_request_error"),
        ("[]", "invalid_request_error"),
        ("[" * 100_000, "invalid_request_error"),
        ('{"type":"response.create","model":"m","input":"x","model":"n"}', "invalid_request_error"),
        ({}, "missing_required_parameter"),
        ({"type": "response.append"}, "invalid_value"),
        ({"type": "response.create", "stream_id": ""}, "invalid_stream_id"),
        ({"type": "response.create", "model": MODEL}, "missing_required_parameter"),
        ({"type": "response.create", "model": MODEL, "input": 7}, "invalid_type"),
        ({"type": "response.create", "model": MODEL, "input": "x", "generate": 1}, "invalid_type"),
        (
            {"type": "response.create", "model": MODEL, "input": "x", "background": True},
            "unsupported_parameter",
        ),
        (
            {"type": "response.create", "model": "no-such-model", "input": "x"},
            "model_not_found",
        ),
    ],
)
def test_an_event_that_cannot_be_served_is_refused_and_the_connection_goes_on(
    proxy: Proxy, sandbox: Sandbox, event: Any, code: str
) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.send(event)
        refusal = client.receive()
        assert (refusal["type"], refusal["error"]["code"] or refusal["error"]["type"]) == (
            "error",
            code,
        )
        assert refusal["status"] in (400, 404)
        request_id = f"{client.request_id}-1"
        assert refusal["headers"]["x-request-id"] == request_id
        line = proxy.wait_for_call(request_id)
        assert (line["outcome"], line["error"], line["method"]) == ("refused", code, "WS")

        assert client.ask("Hello", store=False)


def test_what_wants_no_answer_gets_none(proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.send({"type": "response.processed", "response_id": "resp_1"})
        client.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "x"})

        assert client.receive()["type"] == "response.steer.failed"


@pytest.mark.parametrize(
    ("spec", "status", "last", "code"),
    [
        ("inspection", 400, "error", "content_filter"),
        ("context-length", 400, "response.failed", "context_length_exceeded"),
        ("throttle", 429, "response.failed", "rate_limit_exceeded"),
        ("internal", 500, "response.failed", "server_error"),
        ("chunks=9, cut-after=3", 200, "response.failed", "server_error"),
    ],
)
def test_failures_of_the_upstream(
    proxy: Proxy, sandbox: Sandbox, spec: str, status: int, last: str, code: str
) -> None:
    """Agents try again after a failed response, and some give up upon an error event."""
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create(f"[[sandbox: {spec}]]", store=False)
        events = client.events()
        line = proxy.wait_for_call(f"{client.request_id}-1")

    assert events[-1]["type"] == last
    told = events[-1] if last == "error" else events[-1]["response"]
    assert told["error"]["code"] == code
    if last == "response.failed":
        assert events[0]["type"] == "response.created"
        check_event(events[-1])
    assert (line["status"], line["outcome"]) == (status, "upstream_error")


def test_the_log_has_a_line_for_each_turn_as_for_a_post(proxy: Proxy, sandbox: Sandbox) -> None:
    with Exchange(
        proxy.port,
        {"model": MODEL, "input": "Hello", "stream": True},
        path="/v1/responses",
        key=CLIENT_KEY,
        headers={"X-Request-Id": "by-post"},
    ) as exchange:
        exchange.read_until(b"response.completed")
    with Socket(proxy.port, CLIENT_KEY, headers={"X-Request-Id": "by-socket"}) as client:
        assert client.request_id == "by-socket"
        for _ in range(2):
            client.ask("Hello")

    posted = proxy.wait_for_call("by-post")
    handshake = proxy.wait_for_call("by-socket")
    assert (handshake["status"], handshake["method"]) == (101, "GET")
    for number in (1, 2):
        turn = proxy.wait_for_call(f"by-socket-{number}")
        # A time of 0 is left out.
        times = {name for name in posted if name.endswith("_ms")}
        assert turn.keys() >= posted.keys() - times | {"total_ms", "first_byte_ms"}
        for name in ("client", "path", "status", "outcome", "account", "model", "stream"):
            assert turn[name] == posted[name], name
        assert turn["method"] == "WS"
        assert turn["prompt_tokens"] == posted["prompt_tokens"]


def test_a_long_silence_is_filled_with_events(proxy: Proxy, sandbox: Sandbox) -> None:
    """Codex counts events, and pings are none."""
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.create("[[sandbox: slow-first=1.6]]", store=False)
        kinds = [event["type"] for event in client.events()]

    assert kinds.count("response.in_progress") >= 3
    assert kinds.count("response.created") == 1


def test_a_request_in_many_frames(proxy: Proxy, sandbox: Sandbox) -> None:
    text = json.dumps({"type": "response.create", "model": MODEL, "input": "grüß " * 20_000})
    pieces = [text[at : at + 997] for at in range(0, len(text), 997)]
    with Socket(proxy.port, CLIENT_KEY) as client:
        client.connection.send(iter(pieces))

        assert client.last()["type"] == "response.completed"
    assert sent(sandbox)[0][0]["content"] == "grüß " * 20_000


def test_a_key_is_needed(proxy: Proxy) -> None:
    for key in ("", "wrong"):
        with pytest.raises(InvalidStatus) as caught:
            Socket(proxy.port, key)
        assert caught.value.response.status_code == 401


def test_conversations_belong_to_a_key(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    ada, bob = secret("socket-ada"), secret("socket-bob")
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=f"{ada},{bob}",
    )
    with Socket(proxy.port, ada) as client, Socket(proxy.port, bob) as other:
        first = client.ask("One")
        other.create("Two", previous_response_id=first["id"])

        assert other.last()["error"]["code"] == "previous_response_not_found"
