"""The request that begins a WebSocket: what is taken, and how the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.websocket import handshake

#: The example of RFC 6455, section 1.3.
GOOD = {
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "Upgrade",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_the_example_of_the_standard() -> None:
    assert handshake.accepted(GOOD) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_CONNECTION": "keep-alive, Upgrade"},
        {"HTTP_CONNECTION": "UPGRADE"},
        {"HTTP_OPENAI_BETA": "responses_websockets=2026-02-06"},
        {"HTTP_OPENAI_BETA": "assistants=v2, responses_websockets=2026-02-06"},
        {"HTTP_OPENAI_BETA": "responses_multi_agent=v1"},
        {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate"},
    ],
)
def test_what_clients_send_is_taken(headers: dict[str, str]) -> None:
    assert handshake.accepted({**GOOD, **headers})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, 426),
        ({"HTTP_SEC_WEBSOCKET_VERSION": ""}, 426),
        ({"HTTP_OPENAI_BETA": "responses_websockets=2026-02-04"}, 426),
        ({"HTTP_OPENAI_BETA": "responses_websockets=2027-01-01,x=y"}, 426),
        ({"HTTP_OPENAI_BETA": "responses_websockets"}, 426),
        ({"HTTP_CONNECTION": "keep-alive"}, 426),
        ({"HTTP_CONNECTION": ""}, 426),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, 426),
        ({"HTTP_SEC_WEBSOCKET_KEY": ""}, 400),
        ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ"}, 400),
        ({"HTTP_SEC_WEBSOCKET_KEY": "c2hvcnQ="}, 400),
        ({"HTTP_SEC_WEBSOCKET_KEY": "\xe9" * 24}, 400),
    ],
)
def test_what_cannot_be_served_is_refused(headers: dict[str, str], status: int) -> None:
    with pytest.raises(ApiError) as caught:
        handshake.accepted({**GOOD, **headers})

    assert caught.value.status == status
    if status == 426:
        assert caught.value.message.endswith("Send the request by HTTP POST instead.")


@pytest.mark.parametrize(
    ("environ", "begun", "upgrade"),
    [
        (GOOD, True, True),
        ({"HTTP_UPGRADE": "WebSocket"}, True, True),
        ({"HTTP_SEC_WEBSOCKET_KEY": "x"}, True, False),
        ({"HTTP_UPGRADE": "h2c"}, False, False),
        ({}, False, False),
    ],
)
def test_a_websocket_is_recognised(environ: dict[str, Any], begun: bool, upgrade: bool) -> None:
    assert handshake.is_begun(environ) is begun
    assert handshake.is_upgrade(environ) is upgrade
