"""The whole road: client → nginx with the shipped site → gunicorn with two workers → upstream."""

from __future__ import annotations

import concurrent.futures
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anthropic
import openai
import pytest
from websockets.exceptions import InvalidStatus

from qwen_wsgi.sandbox import Sandbox
from tests.kit import servers
from tests.kit.log_files import note_log_file
from tests.kit.proxy import CLIENT_KEY, Proxy, has_chats
from tests.kit.raw_client import Exchange, chat, events, text_of
from tests.kit.websocket_client import Socket

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not servers.nginx(), reason="nginx is not installed (apt: nginx-light)"),
]


@pytest.fixture(scope="module")
def front(proxy: Proxy) -> Iterator[int]:
    """nginx in front of the shared proxy; its port."""
    with (
        tempfile.TemporaryDirectory(prefix="qp") as directory,
        servers.start_nginx(Path(directory), proxy.port) as server,
    ):
        assert isinstance(server.address, int)
        yield server.address
        note_log_file(server.log)


def test_a_stream_passes_unbuffered(front: int, sandbox: Sandbox) -> None:
    with Exchange(
        front, chat("[[sandbox: chunks=10, interval=0.1]]", stream=True), key=CLIENT_KEY
    ) as exchange:
        began = time.monotonic()
        exchange.read_until(b'"content":')
        first = time.monotonic() - began
        body = exchange.body()
        whole = time.monotonic() - began

    assert first < 0.6 < whole
    assert events(body)[-1] == "[DONE]"


def test_the_official_sdk_streams_through_both(front: int, sandbox: Sandbox) -> None:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{front}/v1", api_key=CLIENT_KEY, max_retries=0
    ) as client:
        with client.chat.completions.create(
            model="qwen3.7-plus",
            messages=[{"role": "user", "content": "[[sandbox: text=through]]"}],
            stream=True,
        ) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        whole = client.chat.completions.create(
            model="qwen3.7-plus", messages=[{"role": "user", "content": "Hello"}]
        )

    assert text == "through"
    assert whole.choices[0].message.content


def test_other_dialects_stream_through_both(front: int, sandbox: Sandbox) -> None:
    text = "[[sandbox: chunks=10, interval=0.1, text=through]]"
    origin = f"http://127.0.0.1:{front}"
    with (
        openai.OpenAI(base_url=origin + "/v1", api_key=CLIENT_KEY, max_retries=0) as client,
        client.responses.stream(model="qwen3.7-plus", input=text) as stream,
    ):
        assert stream.get_final_response().output_text == "through"
    with (
        anthropic.Anthropic(base_url=origin, api_key=CLIENT_KEY, max_retries=0) as other,
        other.messages.stream(
            model="qwen3.7-plus", max_tokens=500, messages=[{"role": "user", "content": text}]
        ) as messages,
    ):
        assert messages.get_final_text() == "through"
        assert messages.response.headers["request-id"]


def test_many_streams_at_a_time(front: int, sandbox: Sandbox) -> None:
    def one(number: int) -> str:
        spec = f"interval=0.02, text=this is answer number {number}"
        with Exchange(
            front, chat(f"[[sandbox: {spec}]]", stream=True), key=CLIENT_KEY, timeout_s=20
        ) as exchange:
            found = events(exchange.body())
        assert found[-1] == "[DONE]"
        return text_of(found)

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(one, range(40)))

    assert answers == [f"this is answer number {number}" for number in range(40)]


def test_a_client_that_leaves_nginx_stops_the_upstream(front: int, sandbox: Sandbox) -> None:
    for spec in ("slow-headers=8", "chunks=999, interval=0.02"):
        exchange = Exchange(front, chat(f"[[sandbox: {spec}]]", stream=True), key=CLIENT_KEY)
        wanted = max(len(sandbox.chats), 1)
        assert sandbox.wait_until(partial(has_chats, sandbox, wanted), 5)
        time.sleep(0.2)
        left_at = exchange.close()

        assert sandbox.wait_until(lambda: sandbox.chats[-1].outcome == "client_gone", 5)
        gone_at = sandbox.chats[-1].gone_s
        assert gone_at is not None and gone_at - left_at < 0.5


def test_keep_alives_pass(front: int, sandbox: Sandbox) -> None:
    with Exchange(
        front, chat("[[sandbox: slow-headers=1.2]]", stream=True), key=CLIENT_KEY
    ) as exchange:
        began = time.monotonic()
        exchange.read_until(b": keep-alive\n\n")

        assert time.monotonic() - began < 1.1
        assert events(exchange.body())[-1] == "[DONE]"


def test_errors_keep_their_status_and_request_id(front: int, sandbox: Sandbox) -> None:
    with Exchange(
        front,
        chat("[[sandbox: throttle]]", stream=True),
        key=CLIENT_KEY,
        headers={"X-Request-Id": "mine-1"},
    ) as exchange:
        status, headers = exchange.head()

    assert status == 429
    assert headers["x-request-id"] == "mine-1"


def test_a_broken_stream_does_not_look_complete(front: int, sandbox: Sandbox) -> None:
    with Exchange(
        front,
        chat("[[sandbox: chunks=9, interval=0.02, cut-after=3]]", stream=True),
        key=CLIENT_KEY,
    ) as exchange:
        received = exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    assert found[-1]["error"]["code"] == "upstream_broken"
    assert not received.endswith(b"\r\n0\r\n\r\n")


def test_websockets_pass(front: int, proxy: Proxy, sandbox: Sandbox) -> None:
    with Socket(front, CLIENT_KEY, headers={"X-Request-Id": "through-nginx"}) as client:
        assert client.request_id == "through-nginx"
        first = client.ask("One", store=False)
        second = client.ask("x" * 200_000, store=False, previous_response_id=first["id"])
        began = time.monotonic()
        client.create("[[sandbox: chunks=10, interval=0.1]]", store=False)
        client.until("response.output_text.delta")
        first_s = time.monotonic() - began
        client.until("response.completed")
        whole_s = time.monotonic() - began

    assert second["status"] == "completed"
    assert first_s < 0.6 < whole_s
    assert proxy.wait_for_call("through-nginx-2")["status"] == 200


def test_a_websockets_client_that_leaves_nginx_stops_the_upstream(
    front: int, sandbox: Sandbox
) -> None:
    with Socket(front, CLIENT_KEY) as client:
        client.create("[[sandbox: slow-first=8]]", store=False)
        assert sandbox.wait_until(partial(has_chats, sandbox, 1), 5)
        left_at = time.monotonic()
        client.vanish()
        assert sandbox.wait_until(lambda: sandbox.chats[-1].outcome == "client_gone", 5)
    gone_at = sandbox.chats[-1].gone_s
    assert gone_at is not None and gone_at - left_at < 0.5


def test_a_websockets_close_codes_pass(front: int, sandbox: Sandbox) -> None:
    with Socket(front, CLIENT_KEY) as client:
        client.send(b"binary")
        close = client.closed()

    assert close is not None
    assert close.code == 1003


def test_a_refused_websocket_keeps_its_status(front: int) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Socket(front, "wrong")

    assert caught.value.response.status_code == 401


def test_other_upgrades_do_not_pass(front: int, sandbox: Sandbox) -> None:
    headers = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AA"}
    with Exchange(front, chat(), key=CLIENT_KEY, headers=headers) as exchange:
        assert exchange.head()[0] == 200


def test_without_the_sites_lines_for_websockets_clients_use_http(proxy: Proxy) -> None:
    """A site of before, which was edited and stays at an upgrade."""

    def old(site: str) -> str:
        for line in (
            "        proxy_set_header Upgrade    $qwen_proxy_upgrade;\n",
            "        proxy_set_header Connection $qwen_proxy_connection;\n",
        ):
            assert line in site
            site = site.replace(line, "")
        return site.replace(
            "proxy_http_version 1.1;", 'proxy_http_version 1.1;\n proxy_set_header Connection "";'
        )

    with (
        tempfile.TemporaryDirectory(prefix="qp") as directory,
        servers.start_nginx(Path(directory), proxy.port, old) as server,
    ):
        assert isinstance(server.address, int)
        with pytest.raises(InvalidStatus) as caught:
            Socket(server.address, CLIENT_KEY)

    assert caught.value.response.status_code == 426
    assert b"took the header 'Upgrade' out" in (caught.value.response.body or b"")


@pytest.mark.parametrize(
    ("address", "key", "status"),
    [
        ("127.0.0.1", None, 200),
        ("192.168.1.7", None, 401),
        ("192.168.1.7", CLIENT_KEY, 403),
    ],
)
def test_nginx_opens_the_metrics_to_this_machine_alone(
    proxy: Proxy, address: str, key: str | None, status: int, tmp_path: Path
) -> None:
    """The address is one that nginx believes to see; what the client sends is replaced."""

    def seen_from(site: str) -> str:
        real = "    set_real_ip_from 127.0.0.1;\n    real_ip_header X-Test-Address;\n"
        return site.replace("    server_tokens off;\n", real + "    server_tokens off;\n")

    with (
        servers.start_nginx(tmp_path, proxy.port, edit=seen_from) as server,
        Exchange(
            int(server.address),
            method="GET",
            path="/metrics",
            key=key,
            headers={
                "Host": "localhost",
                "X-Test-Address": address,
                "X-Forwarded-For": "127.0.0.1",
                "Forwarded": "for=127.0.0.1",
            },
        ) as exchange,
    ):
        assert exchange.head()[0] == status
        note_log_file(server.log)
