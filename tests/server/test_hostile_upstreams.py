"""Answers without an end cost a real worker little memory, and other clients no time."""

from __future__ import annotations

import gzip
import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from tests.fakes.raw_server import COMPLETION, Peer, RawServer, chunked, head, whole
from tests.kit.calls import GENERATIONS
from tests.kit.proxy import Proxy, StartProxy, start
from tests.kit.worker_memory import MB, Memory, ask

pytestmark = pytest.mark.server

#: What an upstream sends in one go, in MB, and how often.
FLOOD = 500


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    value = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**value, "choices": [choice]}).encode() + b"\n\n"


def call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": arguments, **more}}]}


#: A chunk that begins, and one that follows again and again.
KINDS = {
    "long texts": (chunk({"role": "assistant", "content": "a"}), chunk({"content": "x" * 9000})),
    "short texts": (chunk({"role": "assistant", "content": "a"}), chunk({"content": "xy"})),
    "arguments": (
        chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}),
        chunk(call("[" * 500)),
    ),
}


def flood(kind: str, megabytes: int) -> Any:
    first, more = KINDS[kind]
    block = chunked(more * (MB // len(more)), end=False)

    def script(peer: Peer) -> None:
        started = head(content_type="text/event-stream", transfer_encoding="chunked")
        peer.send(started + chunked(first, end=False))
        for _ in range(megabytes):
            peer.send(block)
        peer.send(chunked(chunk({}, "stop"), b"data: [DONE]\n\n"))

    return script


class Pulse:
    """Asks for `/health/live` all the time; keeps the longest wait."""

    def __init__(self, proxy: Proxy) -> None:
        self._url = proxy.origin + "/health/live"
        self._stop = False
        self.count = 0
        self.longest_s = 0.0
        self._thread = Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop:
            began = time.monotonic()
            with urllib.request.urlopen(self._url, timeout=30) as answer:
                assert answer.status == 200
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.count += 1
            time.sleep(0.01)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        self._thread.join(30)


#: The kind of chunks, how many MB of them come, and who asks; not all, because each takes seconds.
CASES = [
    *(("long texts", FLOOD, name) for name in GENERATIONS),
    ("short texts", 50, "chat, whole"),
    ("short texts", 50, "responses, streamed"),
    ("arguments", 50, "chat, streamed"),
    ("arguments", FLOOD, "messages, whole"),
    ("arguments", FLOOD, "responses, streamed"),
]


@pytest.mark.timeout(240)
def test_500_mb_of_an_upstream_cost_less_than_100_mb_of_memory(start_proxy: StartProxy) -> None:
    """A stream of chat passes through; whoever keeps what came ends the answer long before."""
    current = [flood("arguments", 1)]
    with RawServer(lambda peer: current[0](peer)) as server:
        proxy = start_proxy(
            QWEN_UPSTREAM_BASE_URL=server.url,
            QWEN_UPSTREAM_API_KEY="x",
            QWEN_PROXY_UPSTREAM_STREAM="always",
        )
        ask(proxy, *GENERATIONS["chat, streamed"])  # what happens once has happened
        for kind, megabytes, name in CASES:
            current[0] = flood(kind, megabytes)
            with Memory(proxy) as memory, Pulse(proxy) as pulse:
                answer, size = ask(proxy, *GENERATIONS[name])

            assert memory.grown_mb < 100, (kind, name)
            assert pulse.count
            assert pulse.longest_s < 3, (kind, name)  # it was every second and more
            if name == "chat, streamed":
                assert answer.endswith(b"data: [DONE]\n\n")
                assert size > 0.95 * megabytes * MB
            elif kind == "short texts":
                assert b"too large" not in answer
            else:
                assert b"so it was given up" in answer or b'"output":[]' in answer
                assert size < 60 * MB


def whole_of(megabytes: int, **headers: str) -> Callable[[Peer], None]:
    """A whole answer whose text has no end for long, in chunks, or up to the connection's end."""

    def frame(data: bytes) -> bytes:
        return chunked(data, end=False) if "transfer_encoding" in headers else data

    begin = b'{"choices":[{"message":{"content":"'
    block = b"x" * MB
    if headers.get("content_encoding") == "gzip":
        begin, block = b"", gzip.compress(random.Random(1).randbytes(MB))

    def script(peer: Peer) -> None:
        peer.send(head(content_type="application/json", **headers) + frame(begin))
        for _ in range(megabytes):
            peer.send(frame(block))
        peer.close()

    return script


@dataclass
class Place:
    """A proxy of several tests, which each put their script in front of it: a start costs more than
    most of them."""

    current: list[Callable[[Peer], None]]
    server: RawServer
    proxy: Proxy


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    current = [whole_of(1)]
    with RawServer(lambda peer: current[0](peer)) as server:
        account = {"QWEN_UPSTREAM_BASE_URL": server.url, "QWEN_UPSTREAM_API_KEY": "x"}
        proxy = start(tmp_path_factory.mktemp("hostile"), account)
        try:
            yield Place(current, server, proxy)
        finally:
            proxy.stop()


@pytest.fixture
def place(_place: Place) -> Place:
    """With nothing that the test before has left: the worker keeps some memory."""
    assert not _place.server.failures
    _place.proxy.renew()
    return _place


@pytest.mark.parametrize("name", ["chat, whole", "messages, whole", "responses, streamed"])
@pytest.mark.parametrize(
    "headers",
    [
        {"connection": "close"},
        {"transfer_encoding": "chunked"},
        {"connection": "close", "content_encoding": "gzip"},
    ],
    ids=lambda headers: ", ".join(headers.values()),
)
def test_500_mb_of_a_whole_answer_cost_less_than_100_mb_of_memory(
    place: Place, headers: dict[str, str], name: str
) -> None:
    place.current[0] = whole_of(1, **headers)
    ask(place.proxy, *GENERATIONS[name])  # what happens once has happened
    place.current[0] = whole_of(FLOOD, **headers)
    with Memory(place.proxy) as memory:
        answer, _ = ask(place.proxy, *GENERATIONS[name])

    assert b"QWEN_PROXY_MAX_ANSWER" in answer
    assert memory.grown_mb < 100


def test_a_whole_json_answer_of_64_mib_is_copied_once(place: Place) -> None:
    """It takes its bytes, and the text in them."""
    text = "x" * ((64 << 20) - 1000)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    value = {**COMPLETION, "choices": [{**choice, "finish_reason": "stop"}]}
    answers = [whole(json.dumps(each).encode()) for each in (COMPLETION, value)]
    place.current[0] = lambda peer: peer.send(answers[0])
    ask(place.proxy, *GENERATIONS["chat, whole"])  # what happens once has happened
    place.current[0] = lambda peer: peer.send(answers[1])
    with Memory(place.proxy) as memory:
        answer, size = ask(place.proxy, *GENERATIONS["chat, whole"])

    assert size > len(text)
    assert answer.endswith(b'"finish_reason": "stop"}]}')
    assert memory.grown_mb < 160
