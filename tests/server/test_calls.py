"""The calls in flight of two workers: listed, cancelled, and forgotten with a worker that dies."""

from __future__ import annotations

import io
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.cli import calls as calls_command
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.upstream import settings_of
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, start
from tests.kit.raw_client import Exchange, chat, events
from tests.kit.secrets import secret
from tests.kit.servers import wait_until
from tests.kit.websocket_client import Socket

pytestmark = pytest.mark.server

ADMIN = secret("admin-of-calls")
ENDLESS = "[[sandbox: chunks=999, interval=0.05]]"
SLOW = "[[sandbox: slow-headers=9]]"
#: The promise for calls of a worker that was killed is 5 s.
GONE_S = 5.0


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    # Its state directory has a longer path than the address of a socket may have.
    directory = tmp_path_factory.mktemp("calls")
    deep = directory / ("d" * 100) / "state"
    running = start(
        directory,
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_ADMIN_KEYS": ADMIN,
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_STATE_DIR": str(deep),
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.3",
        },
    )
    yield running
    running.stop()


def ask(proxy: Proxy, method: str = "GET", path: str = "") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{proxy.origin}/admin/v1/calls{path}",
        method=method,
        headers={"Authorization": f"Bearer {ADMIN}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


def calls(proxy: Proxy) -> list[dict[str, Any]]:
    status, found = ask(proxy)
    assert status == 200, found
    rows: list[dict[str, Any]] = found["data"]
    return rows


def ids(proxy: Proxy) -> list[str]:
    return [row["id"] for row in calls(proxy)]


def call_of(proxy: Proxy, id: str, state: str = "") -> dict[str, Any]:
    """The call, once it is listed (in a state)."""

    def look() -> dict[str, Any] | None:
        rows = [row for row in calls(proxy) if row["id"] == id]
        return rows[0] if rows and rows[0]["state"] in (state or rows[0]["state"]) else None

    found: dict[str, Any] = wait_until(look, f"the call {id}")
    return found


def sent(proxy: Proxy, id: str, text: str = ENDLESS, **more: Any) -> Exchange:
    path, body = more.pop("path", "/v1/chat/completions"), chat(text, **more)
    return Exchange(proxy.port, body, path=path, key=CLIENT_KEY, headers={"X-Request-Id": id})


def all_ended(sandbox: Sandbox) -> bool:
    return all(each.outcome != "open" for each in sandbox.requests)


def command(proxy: Proxy, *words: str) -> tuple[int, str]:
    """What `qwen-proxy calls` prints, as a process that is no worker."""
    out = io.StringIO()
    state_dir = next(proxy.log.parent.glob("d*")) / "state"
    action, id = words or ("list", None)
    status = calls_command.run(
        settings_of(QWEN_PROXY_STATE_DIR=state_dir),
        action,
        id,
        json_output=bool(words),
        out=out,
        err=out,
    )
    return status, out.getvalue()


def test_calls_of_both_workers_are_listed_the_newest_last(proxy: Proxy, sandbox: Sandbox) -> None:
    with ExitStack() as open_ones:
        for number in range(12):
            exchange = open_ones.enter_context(sent(proxy, f"many-{number}", stream=True))
            exchange.read_until(b"data:")

        rows = calls(proxy)

        assert [row["id"] for row in rows] == [f"many-{number}" for number in range(12)]
        assert len({row["worker"] for row in rows}) == 2
        told = call_of(proxy, "many-0", "streaming")
        assert (told["client"], told["endpoint"]) == ("env-1", "/v1/chat/completions")
        assert (told["account"], told["model"]) == ("dashscope", "qwen3.7-plus")
        assert (told["attempts"], told["stream"], told["address"]) == (1, True, "127.0.0.1")
        assert 0 < told["seconds_to_first_byte"] <= told["seconds"]
        assert told["received_bytes"] > 0
        status, out = command(proxy)
        assert status == 0
        assert [line.split()[0] for line in out.splitlines()] == ["ID", *(r["id"] for r in rows)]
    wait_until(lambda: ids(proxy) == [], "the end of all calls")
    assert sandbox.wait_until(lambda: all_ended(sandbox), 5)


def ends_whole(exchange: Exchange) -> dict[str, Any]:
    status, headers = exchange.head()
    assert status == 403
    assert headers["x-should-retry"] == "false"
    error: dict[str, Any] = json.loads(exchange.body())["error"]
    return error


def ends_cut(exchange: Exchange) -> dict[str, Any]:
    """Chat has no event for a failure: the connection breaks behind one of ours."""
    assert exchange.head()[0] == 200
    exchange.read_to_end()
    error: dict[str, Any] = events(b"".join(exchange.chunks()))[-1]["error"]
    return error


def ends_in_order(exchange: Exchange) -> dict[str, Any]:
    assert exchange.head()[0] == 200
    last = events(exchange.body())[-1]
    error: dict[str, Any] = last.get("error") or last["response"]["error"]
    return error


Ends = Callable[[Exchange], dict[str, Any]]
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


@pytest.mark.parametrize(
    ("path", "text", "members", "state", "ends"),
    [
        pytest.param("", SLOW, {}, "waiting", ends_whole, id="chat-whole"),
        pytest.param("", SLOW, {"stream": True}, "waiting", ends_cut, id="after-the-head"),
        pytest.param("", ENDLESS, {"stream": True}, "streaming", ends_cut, id="chat-streamed"),
        pytest.param(
            RESPONSES,
            ENDLESS,
            {"stream": True},
            "streaming",
            ends_in_order,
            id="responses-streamed",
        ),
        pytest.param(MESSAGES, SLOW, {"max_tokens": 9}, "waiting", ends_whole, id="messages-whole"),
        pytest.param(
            MESSAGES,
            ENDLESS,
            {"max_tokens": 9000, "stream": True},
            "streaming",
            ends_in_order,
            id="messages-streamed",
        ),
    ],
)
def test_a_cancelled_call_ends_with_its_reason(
    proxy: Proxy,
    sandbox: Sandbox,
    request: pytest.FixtureRequest,
    path: str,
    text: str,
    members: dict[str, Any],
    state: str,
    ends: Ends,
) -> None:
    id = f"ended/{request.node.callspec.id}"
    if path == RESPONSES:
        members = {**members, "input": text}
    with sent(proxy, id, text, path=path or "/v1/chat/completions", **members) as exchange:
        call_of(proxy, id, state)
        # A call is listed before its request has reached the upstream.
        assert sandbox.wait_until(lambda: bool(sandbox.chats), 5)
        if ends is ends_cut and state == "waiting":
            exchange.read_until(b": keep-alive")

        assert ask(proxy, "DELETE", f"/{id}") == (
            200,
            {"object": "call", "id": id, "cancelled": 1},
        )

        error = ends(exchange)
    assert "cancelled by 'env-admin-1'" in error["message"]
    assert sandbox.wait_until(lambda: all_ended(sandbox), 5)
    assert sandbox.chats[-1].outcome == "client_gone"
    line = proxy.wait_for_call(id)
    assert (line["outcome"], line["error"]) == ("cancelled", "call_cancelled")
    status, refused = ask(proxy, "DELETE", f"/{id}")
    assert (status, refused["error"]["code"]) == (404, "call_not_found")


def test_all_calls_of_an_id_end_also_by_the_command(proxy: Proxy, sandbox: Sandbox) -> None:
    with ExitStack() as open_ones:
        twins = [open_ones.enter_context(sent(proxy, "twin", SLOW)) for _ in range(4)]
        other = open_ones.enter_context(sent(proxy, "no-twin", stream=True))
        wait_until(lambda: sorted(ids(proxy)) == ["no-twin", *["twin"] * 4], "five calls")

        status, out = command(proxy, "cancel", "twin")

        assert status == 0
        assert json.loads(out) == {"object": "call", "id": "twin", "cancelled": 4}
        for twin in twins:
            assert "by 'qwen-proxy calls cancel'" in ends_whole(twin)["message"]
        assert ids(proxy) == ["no-twin"]
        other.read_until(b"data:")
    wait_until(lambda: ids(proxy) == [], "the end of all calls")
    assert command(proxy) == (0, "No calls are in flight.\n")
    assert command(proxy, "cancel", "twin")[0] == 1


def test_the_official_sdk_asks_no_second_time(proxy: Proxy, sandbox: Sandbox) -> None:
    with (
        openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=3) as client,
        client.chat.completions.create(
            model="qwen3.7-plus",
            messages=[{"role": "user", "content": ENDLESS}],
            stream=True,
            extra_headers={"X-Request-Id": "of-the-sdk"},
        ) as stream,
    ):
        next(stream)
        ask(proxy, "DELETE", "/of-the-sdk")
        with pytest.raises(openai.APIError, match="cancelled by 'env-admin-1'"):
            list(stream)
    assert len(sandbox.chats) == 1


def test_a_response_over_a_websocket_and_one_in_the_background(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    with (
        Socket(proxy.port, CLIENT_KEY, headers={"X-Request-Id": "socket"}) as ws,
        openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0) as client,
    ):
        ws.create(ENDLESS)
        made = client.responses.create(model="qwen-plus", input=SLOW, background=True)
        call_of(proxy, "socket-1", "streaming")
        assert call_of(proxy, made.id)["method"] == "BACKGROUND"

        assert ask(proxy, "DELETE", "/socket-1")[0] == 200
        assert ask(proxy, "DELETE", f"/{made.id}")[0] == 200

        failure = ws.until("response.failed")["response"]["error"]
        assert "cancelled by" in failure["message"]
        failed = wait_until(
            lambda: (found := client.responses.retrieve(made.id)).status == "failed" and found,
            "the end of the response",
        )
        assert "cancelled by" in failed.error.message
    assert proxy.wait_for_call(made.id)["outcome"] == "cancelled"
    assert ids(proxy) == []


def test_calls_of_a_killed_worker_vanish(proxy: Proxy, sandbox: Sandbox) -> None:
    with ExitStack() as open_ones:
        for number in range(8):
            open_ones.enter_context(sent(proxy, f"left-{number}", stream=True)).read_until(b"data:")
        rows = calls(proxy)
        killed = rows[0]["worker"]
        left = [row["id"] for row in rows if row["worker"] != killed]
        assert 0 < len(left) < 8

        os.kill(killed, signal.SIGKILL)

        wait_until(lambda: ids(proxy) == left, "the list without its calls", within_s=GONE_S)
        # Old workers go on with their calls after a reload, and tell of them.
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(sockets(proxy)) >= 3, "the new workers")
        assert ids(proxy) == left
    wait_until(lambda: len(sockets(proxy)) == 2, "the end of the old workers")
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in sockets(proxy))


def sockets(proxy: Proxy) -> list[Path]:
    return list(proxy.log.parent.glob("d*/state/sockets/*.sock"))
