"""A connection in a time that a test moves, and with faults that no server test can cause."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import socket
from gevent.queue import Queue
from wsproto import events
from wsproto.connection import Connection, ConnectionType

from qwen_wsgi.api.websocket.session import LONGEST_S, Session
from qwen_wsgi.errors import BadRequest
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.services import Services, build_services
from qwen_wsgi.state.database.calls import row_of
from tests.fakes.clock import FakeClock
from tests.fakes.raw_server import RawServer, stream
from tests.fakes.upstream import settings_of

PATIENCE_S = 10
ENVIRON = {"PATH_INFO": "/v1/responses", "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1"}


class Talk:
    """The client of a session; both run in greenlets.

    Args:
        pongs: it answers pings.
    """

    def __init__(self, services: Services, *, pongs: bool = True, key: str = "") -> None:
        self._ours, self._socket = socket.socketpair()
        self._connection = Connection(ConnectionType.CLIENT)
        self._pongs = pongs
        self._received: Queue[Any] = Queue()
        environ = {**ENVIRON, "HTTP_X_API_KEY": key} if key else ENVIRON
        client = services.guard.identify(environ)
        self.session = Session(services, environ, client, "req-1")
        services.connections.enter(self.session, client.id)
        self.greenlet = gevent.spawn(self.session.run, self._ours, b"101\r\n\r\n")
        assert self._socket.recv(7) == b"101\r\n\r\n"
        self._reader = gevent.spawn(self._read)

    def send(self, **event: Any) -> None:
        text = json.dumps(event)
        self._socket.sendall(self._connection.send(events.TextMessage(data=text)))

    def receive(self) -> Any:
        """The next event, or the code of the close frame."""
        return self._received.get(timeout=PATIENCE_S)

    def until(self, type: str) -> Any:
        """The next event of a type."""
        while (event := self.receive())["type"] != type:
            pass
        return event

    def _read(self) -> None:
        text = ""
        while data := self._socket.recv(65536):
            self._connection.receive_data(data)
            for event in self._connection.events():
                if isinstance(event, events.CloseConnection):
                    self._received.put(event.code)
                elif isinstance(event, events.Ping) and self._pongs:
                    self._socket.sendall(self._connection.send(event.response()))
                elif isinstance(event, events.TextMessage):
                    text += event.data
                    if event.message_finished:
                        self._received.put(json.loads(text))
                        text = ""

    def leave(self) -> None:
        self._reader.kill()
        self._socket.close()
        self.greenlet.join(PATIENCE_S)
        assert self.greenlet.dead
        self._ours.close()


@contextmanager
def talking(services: Services, *, pongs: bool = True, key: str = "") -> Iterator[Talk]:
    """A client, and the check that nothing is left of it."""
    talk = Talk(services, pongs=pongs, key=key)
    try:
        yield talk
    finally:
        talk.leave()
        assert len(services.connections) == 0
        assert services.connection_memory.held == 0
        assert services.admission.in_flight == 0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def services(clock: FakeClock) -> Iterator[Services]:
    made = build_services(settings_of(QWEN_PROXY_KEEPALIVE_INTERVAL="0.05"), clock)
    yield made
    made.close()


def test_an_hour_is_the_longest(clock: FakeClock, services: Services) -> None:
    with talking(services) as talk:
        for _ in range(5):
            clock.advance(LONGEST_S / 5 - 1)
            # So that it is not idle.
            talk.session._used_at = clock.monotonic()
            gevent.sleep(0.12)
        talk.send(type="nonsense")
        assert talk.receive()["error"]["code"] == "invalid_value"
        clock.advance(5)
        talk.session._used_at = clock.monotonic()
        refusal = talk.receive()

        assert (refusal["type"], refusal["status"]) == ("error", 400)
        assert refusal["error"]["code"] == "websocket_connection_limit_reached"
        assert talk.receive() == 1001


def test_a_fault_of_the_connection_is_told_by_its_code(
    clock: FakeClock, services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(type(services.connection_memory)):  # type: ignore[misc]  # its class, whatever it is
        def take(self, size: int) -> bool:
            raise RuntimeError("made by the test")

    broken = dataclasses.replace(services, connection_memory=Broken(1000))
    with talking(broken) as talk:
        talk.send(type="response.create", input="x")

        assert talk.receive() == 1011
    assert "fault in a WebSocket" in caplog.text
    assert "made by the test" in caplog.text


def test_a_fault_of_a_turn_is_an_error_event(
    clock: FakeClock, services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def plan(self, call: Any) -> Any:
            raise RuntimeError("made by the test")

    broken: Any = dataclasses.replace(services, executor=Broken())  # type: ignore[arg-type]  # a fake
    with talking(broken) as talk:
        for number in (1, 2):
            talk.send(type="response.create", model="m", input="x", stream_id="lane")
            error = talk.receive()

            assert (error["status"], error["error"]["code"]) == (500, "internal_error")
            assert error["stream_id"] == "lane"
            assert f"req-1-{number}" in error["error"]["message"]
    assert "made by the test" in caplog.text


def test_nothing_is_begun_for_a_client_that_cannot_be_told(services: Services) -> None:
    """A turn may find out before the greenlet that reads: nothing can be read yet."""
    told = gevent.event.Event()
    begun: list[Any] = []

    class Slow:
        def plan(self, call: Any) -> Any:
            begun.append(call)
            told.wait(PATIENCE_S)
            raise BadRequest("made by the test")

    slow: Any = dataclasses.replace(services, executor=Slow())  # type: ignore[arg-type]  # a fake
    with talking(slow) as talk:
        for _ in range(3):
            talk.send(type="response.create", model="m", input="x")
        gevent.sleep(0.05)
        talk._socket.shutdown(socket.SHUT_RD)
        told.set()
        talk.greenlet.join(PATIENCE_S)
        assert talk.greenlet.dead
    assert len(begun) == 1


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_turns_with_what_is_kept_between_them(clock: FakeClock) -> None:
    answer = stream(chunk({"content": "Good"}), chunk({}, "stop"), b"data: [DONE]\n\n")
    with RawServer(answer, answer) as server:
        settings = settings_of(
            QWEN_UPSTREAM_BASE_URL=server.url + "/v1",
            QWEN_UPSTREAM_API_KEY="k",
            QWEN_PROXY_KEEPALIVE_INTERVAL="0.05",
        )
        services = build_services(settings, clock)
        with talking(services) as talk:
            talk.send(type="response.create", model="m", input="One", store=False)
            event = talk.until("response.completed")
            assert services.connection_memory.held > 0
            before = event["response"]["id"]
            talk.send(type="response.create", model="m", input="2", previous_response_id=before)
            event = talk.until("response.completed")
        # The second is stored, with all that went before.
        (stored,) = [services.responses.get("local", event["response"]["id"])]
        assert stored is not None
        assert [item.get("role") for item in stored.input_items] == ["user", "assistant", "user"]
        services.close()


def test_each_turn_obeys_the_key_as_it_is_then(clock: FakeClock) -> None:
    answer = stream(chunk({"content": "Good"}), chunk({}, "stop"), b"data: [DONE]\n\n")
    with RawServer(answer, answer) as server:
        settings = settings_of(QWEN_UPSTREAM_BASE_URL=server.url + "/v1", QWEN_UPSTREAM_API_KEY="k")
        services = build_services(settings, clock)
        keys, ring = services.client_keys, services.key_ring
        made = keys.add({"name": "anna", "models": ("m*",)})
        ring.look_again()
        with talking(services, key=made.secret) as talk:

            def refused(model: str) -> tuple[int, str]:
                talk.send(type="response.create", model=model, input="x", stream_id="lane")
                error = talk.receive()
                return error["status"], error["error"]["code"]

            assert refused("other") == (403, "model_not_allowed")
            talk.send(type="response.create", model="m", input="x", stream_id="lane")
            response = talk.until("response.completed")["response"]
            assert services.responses.get(made.key.id, response["id"]) is not None
            keys.edit("anna", {"cidr": ("192.168.1.0/24",)})
            ring.look_again()
            assert refused("m") == (403, "network_not_allowed")
            keys.revoke("anna")
            ring.look_again()
            assert refused("m") == (401, "revoked_api_key")
        services.close()


def test_a_client_that_answers_no_ping_is_given_up(clock: FakeClock, services: Services) -> None:
    with talking(services, pongs=False) as talk:
        clock.advance(1)
        gevent.sleep(0.2)
        assert not talk.greenlet.dead
        clock.advance(1)
        talk.greenlet.join(PATIENCE_S)
        assert talk.greenlet.dead


class Rows:
    """Counts the calls that are written down."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def append(self, line: bytes) -> None:
        self.lines.append(line)

    def flush(self) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("event", "last", "outcome"),
    [
        ({"type": "nonsense"}, "error", "refused"),
        ({"type": "response.create", "model": "qwen3.8-max"}, "error", "refused"),
        (
            {"type": "response.create", "model": "qwen3.8-max", "input": "x", "generate": False},
            "response.completed",
            "complete",
        ),
        (
            {"type": "response.create", "model": "qwen3.8-max", "input": "hello"},
            "response.completed",
            "complete",
        ),
        (
            {
                "type": "response.create",
                "model": "qwen3.8-max",
                "input": "[[sandbox: cut-after=2]]",
            },
            "response.failed",
            "upstream_error",
        ),
        (
            {
                "type": "response.create",
                "model": "qwen3.8-max",
                "input": "[[sandbox: error=limit_requests]]",
            },
            "response.failed",
            "upstream_error",
        ),
    ],
)
def test_a_turn_is_in_the_ledger_before_its_last_event_is_sent(
    clock: FakeClock, event: dict[str, Any], last: str, outcome: str
) -> None:
    with Sandbox() as sandbox:
        services = build_services(
            settings_of(
                QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
                QWEN_UPSTREAM_API_KEY="sk-up",
                QWEN_PROXY_RETRY_BUDGET="0",
            ),
            clock,
        )
        rows = Rows()
        services.ledger._writer = rows
        with talking(services) as talk:
            send, written = talk.session.send, list[int]()

            def spy(messages: Any) -> None:
                for message in messages:
                    written.append(len(rows.lines))
                    send([message])

            talk.session.send = spy  # type: ignore[method-assign]  # to look between
            talk.send(**event)
            talk.until(last)
            gevent.sleep(0)
            assert written[-1] == 1
        services.close()
    (line,) = rows.lines
    row = row_of(line)
    assert row is not None
    assert (row.outcome, row.endpoint) == (outcome, "/v1/responses")
