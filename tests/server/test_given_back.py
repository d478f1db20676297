"""Whatever goes wrong in an answer, a real server gives back its place, its slot and its upstream.

There is one place and one slot: what is not given back is missing for the next call. What an
exception in our own code leaves behind is in tests/api/test_released.py.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.fakes.raw_server import COMPLETION, Answer, Peer, RawServer, chunked, head, stream, whole
from tests.kit.calls import EMBEDDINGS, GENERATIONS, Call
from tests.kit.proxy import Proxy, start
from tests.kit.raw_client import Exchange
from tests.kit.servers import wait_until

pytestmark = pytest.mark.server

CHUNK = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"hello"},'
    b'"finish_reason":null}]}\n\n'
)
END = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
GOOD = stream(CHUNK, END)
BEGUN = head(content_type="text/event-stream", transfer_encoding="chunked")

CALLS: dict[str, Call] = {
    **{
        name: GENERATIONS[name]
        for name in ("chat, streamed", "chat, whole", "messages, streamed", "responses, streamed")
    },
    "embeddings": EMBEDDINGS,
}


def with_id(id: bytes, answer: bytes = GOOD) -> bytes:
    first, rest = answer.split(b"\r\n", 1)
    return first + b"\r\nx-request-id: " + id + b"\r\n" + rest


def hangs(*begun: bytes) -> Answer:
    """Sends the beginning of an answer, and then nothing until the connection is closed."""

    def script(peer: Peer) -> None:
        for piece in begun:
            peer.send(piece)
        with suppress(TimeoutError):
            peer.wait_until_closed()
        peer.close()

    return script


def breaks(*begun: bytes) -> Answer:
    """Sends the beginning of an answer, and resets the connection."""

    def script(peer: Peer) -> None:
        for piece in begun:
            peer.send(piece)
        time.sleep(0.05)
        peer.reset()

    return script


EVENT = chunked(CHUNK, end=False)
FAULTS: dict[str, Answer] = {
    "a NUL in the id": with_id(b"a\x00b"),
    "a LF in the id": with_id(b"a\nb"),
    "a CR in the id": with_id(b"a\rb"),
    "a long id": with_id(b"a" * 5000),
    "a NUL in the id of a whole answer": with_id(b"a\x00b", whole(json.dumps(COMPLETION).encode())),
    "a NUL in the id of an error": with_id(b"a\x00b", whole(b"{}", "500 Oops")),
    "no head": breaks(),
    "half a head": breaks(BEGUN[:40]),
    "no event": breaks(BEGUN),
    "half a stream": breaks(BEGUN, EVENT),
    "silence after the head": hangs(BEGUN),
    "silence in a stream": hangs(BEGUN, EVENT),
    "broken chunks": hangs(BEGUN, EVENT, b"xyz\r\n"),
    "an error in a stream": hangs(BEGUN, EVENT, chunked(b'data: {"error":{"message":"x"}}\n\n')),
    "no finish": stream(CHUNK),
    "too many choices": stream(
        *(CHUNK.replace(b'"index":0', b'"index":%d' % n) for n in range(200))
    ),
    "too much text": stream(CHUNK, CHUNK.replace(b"hello", b"x" * (33 << 20)), END),
    "no JSON": whole(b"{"),
}


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    """What the upstream answers next; it stays the same object."""
    return [GOOD]


@pytest.fixture(scope="module")
def upstream(answers: list[Answer]) -> Iterator[RawServer]:
    def answer(peer: Peer) -> None:
        current = answers[0]
        if isinstance(current, bytes):
            peer.send(current)
        else:
            current(peer)

    with RawServer(answer) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(upstream: RawServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("given-back"),
        {
            "QWEN_UPSTREAM_BASE_URL": upstream.url,
            "QWEN_UPSTREAM_API_KEY": "x",
            "QWEN_PROXY_UPSTREAM_STREAM": "always",
            "QWEN_PROXY_MAX_IN_FLIGHT": "1",
            "QWEN_PROXY_ACCOUNT_IN_FLIGHT": "1",
            "QWEN_PROXY_ACCOUNT_QUEUE": "0",
            "QWEN_PROXY_IDLE_TIMEOUT": "0.5",
            "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "0.5",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.1",
        },
    )
    yield running
    running.stop()


def in_flight(proxy: Proxy) -> int:
    try:
        with urllib.request.urlopen(proxy.origin + "/health", timeout=5) as answer:
            return int(json.load(answer)["in_flight"])
    except urllib.error.HTTPError as error:
        with error:
            return int(json.load(error)["in_flight"])


def check_given_back(proxy: Proxy, upstream: RawServer, answers: list[Answer]) -> None:
    wait_until(lambda: in_flight(proxy) == 0, "a free place", within_s=5)
    wait_until(lambda: sum(not each.closed for each in upstream._peers) <= 1, "closed connections")
    proxy.forget_troubles()
    answers[0] = GOOD
    path, body = CALLS["chat, streamed"]
    with Exchange(proxy.port, body, path=path, headers={"Connection": "close"}) as call:
        assert b"data: [DONE]" in call.read_to_end()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_a_fault_of_the_upstream_takes_nothing(
    name: str, fault: str, proxy: Proxy, upstream: RawServer, answers: list[Answer]
) -> None:
    answers[0] = FAULTS[fault]
    path, body = CALLS[name]
    with Exchange(proxy.port, body, path=path, headers={"Connection": "close"}) as call:
        with suppress(ConnectionResetError):
            call.read_to_end()
        assert call._received.startswith(b"HTTP/1.1 ")

    check_given_back(proxy, upstream, answers)
    assert "Traceback" not in proxy.log.read_text()


GONE = {
    "before the head": hangs(),
    "before the first event": hangs(BEGUN),
    "in the stream": hangs(BEGUN, EVENT),
    "while it is sent more than it reads": hangs(BEGUN, chunked(CHUNK * 200_000, end=False)),
}


@pytest.mark.parametrize("when", GONE)
@pytest.mark.parametrize("name", CALLS)
def test_a_client_that_goes_away_takes_nothing(
    name: str, when: str, proxy: Proxy, upstream: RawServer, answers: list[Answer]
) -> None:
    answers[0] = GONE[when]
    count = len(upstream.requests)
    path, body = CALLS[name]
    with Exchange(proxy.port, body, path=path):
        wait_until(lambda: len(upstream.requests) > count, "a request")
        time.sleep(0.1)

    check_given_back(proxy, upstream, answers)


def test_a_client_that_goes_away_while_it_sends_takes_nothing(
    proxy: Proxy, upstream: RawServer, answers: list[Answer]
) -> None:
    head = {"Content-Length": "1000000"}
    with Exchange(proxy.port, b'{"model":', headers=head):
        time.sleep(0.1)

    check_given_back(proxy, upstream, answers)
