"""One call to one account, over real sockets: up to its first event, or to its whole answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import AccountUnavailable, ApiError, UpstreamError, UpstreamTimeout
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream, parse_request, upstream_body
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.state.refused_inputs import RefusedInputs
from qwen_wsgi.upstream.chat_attempt import ChatAnswer, ChatAttempt, ChatCall
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.open_stream import OpenStream
from qwen_wsgi.upstream.routing.router import Route
from tests.fakes.raw_server import Answer as Reply
from tests.fakes.raw_server import Peer, RawServer, chunked, head, stream, whole
from tests.fakes.upstream import SECRET, account_of, settings_of

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse.render({"id": "c1", "model": "m", "created": 7, "choices": [choice], **extra})


ROLE = chunk({"role": "assistant", "content": ""})
TEXT = chunk({"content": "hi"})
FINISH = chunk({}, "stop")
USAGE_CHUNK = sse.render({"id": "c1", "choices": [], "usage": USAGE})
GOOD = (ROLE, TEXT, FINISH, USAGE_CHUNK, sse.DONE)

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 7,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}


class World:
    """A client and an account whose host is a scripted server."""

    def __init__(self, server: RawServer, account: dict[str, Any], environ: dict[str, Any]) -> None:
        self.settings = settings = settings_of(
            **{
                "QWEN_PROXY_FIRST_BYTE_TIMEOUT": 5,
                "QWEN_PROXY_IDLE_TIMEOUT": 5,
                "QWEN_PROXY_CONNECT_TIMEOUT": 5,
                **environ,
            }
        )
        self.server = server
        self.transport = Transport(settings)
        self.client = UpstreamClient(settings, self.transport, SystemClock())
        self.record = CallRecord()
        self.account: Account = account_of(base_url=server.url + "/v1", **account)

    def open(self, headers: dict[str, str] | None = None, **members: Any) -> OpenStream:
        request = request_of(stream=True, **members)
        return self.client.open_stream(
            self.account,
            upstream_body(request, model="m", stream=True),
            headers=headers or {},
            chunks=ChunkStream(hide_usage=not request.wants_usage),
            record=self.record,
        )

    def complete(self, **members: Any) -> ChatAnswer:
        attempt = ChatAttempt(self.settings, self.client, SystemClock(), RefusedInputs(None))
        call = ChatCall(request_of(**members), {}, self.record)
        return attempt.complete(call, Route(self.account, "m"))

    def sent(self, number: int = 0) -> dict[str, Any]:
        """The JSON body of a request that the server got."""
        body: dict[str, Any] = json.loads(self.server.requests[number].partition(b"\r\n\r\n")[2])
        return body


def request_of(**members: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **members}
    return parse_request(JsonObject(json.dumps(body).encode()))


@contextmanager
def world(
    *replies: Reply, account: dict[str, Any] | None = None, **environ: Any
) -> Iterator[World]:
    with RawServer(*replies) as server:
        made = World(server, account or {}, environ)
        try:
            yield made
        finally:
            made.transport.close()


def all_of(opened: OpenStream) -> bytes:
    """Everything that a client would get, the stream closed after it."""
    try:
        out = opened.first
        while (events := opened.read(5)) is not None:
            out += events
        return out
    finally:
        opened.close()


def then_close(data: bytes) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        peer.send(data)
        peer.close()

    return answer


EITHER = pytest.mark.parametrize("call", [World.open, World.complete], ids=["stream", "whole"])


def test_a_stream_is_carried_and_its_connection_kept() -> None:
    with world(stream(*GOOD)) as here:
        for _ in range(2):
            opened = here.open()
            out = all_of(opened)
            assert out == ROLE + TEXT + FINISH
            assert opened.chunks.complete
            assert opened.chunks.usage == Usage(prompt=3, completion=2, total=5)
        assert here.sent()["stream_options"] == {"include_usage": True}


def end_a_little_later(peer: Peer) -> None:
    peer.send(stream(*GOOD, end=False))
    time.sleep(0.02)
    peer.send(b"0\r\n\r\n")


def test_after_a_whole_answer_the_connection_serves_again() -> None:
    with world(end_a_little_later) as here:
        for _ in range(2):
            here.complete()
        assert here.server.connections == 1


def test_after_done_the_framing_is_drained_so_that_the_connection_serves_again() -> None:
    with world(end_a_little_later) as here:
        for _ in range(2):
            opened = here.open()
            while opened.read(5) is not None:
                pass
            opened.drain()
            opened.close()
        assert here.server.connections == 1


def test_a_client_that_asks_for_usage_gets_it() -> None:
    with world(stream(*GOOD)) as here:
        assert all_of(here.open(stream_options={"include_usage": True})).endswith(USAGE_CHUNK)


def test_the_clients_own_headers_go_along() -> None:
    with world(stream(*GOOD)) as here:
        all_of(here.open({"User-Agent": "agent/1"}))
        sent = here.server.requests[0]

    assert b"User-Agent: agent/1\r\n" in sent
    assert b"Accept: text/event-stream\r\n" in sent
    assert f"Authorization: Bearer {SECRET}\r\n".encode() in sent


def test_the_upstreams_request_id_is_noted() -> None:
    with world(
        whole(b"".join(GOOD), content_type="text/event-stream", x_request_id="up-1")
    ) as here:
        opened = here.open()
        all_of(opened)
        assert here.record.upstream_request_id == "up-1"
        here.record.upstream_request_id = ""
        here.complete()
        assert here.record.upstream_request_id == "up-1"


@pytest.mark.parametrize(
    "reply",
    [
        stream(*GOOD),
        stream(b": x\n\n", *GOOD),
        stream(b"".join(GOOD).replace(b"\n", b"\r\n")),
        whole(b"".join(GOOD), content_type="text/event-stream; charset=utf-8"),
        then_close(head(content_type="text/event-stream", connection="close") + b"".join(GOOD)),
        then_close(head(content_type="text/event-stream") + b"".join(GOOD).removesuffix(b"\n\n")),
        then_close(head(content_type="text/event-stream") + ROLE + TEXT + FINISH + USAGE_CHUNK),
        then_close(
            head(content_type="text/event-stream")
            + ROLE
            + TEXT
            + FINISH
            + USAGE_CHUNK.removesuffix(b"\n\n")
        ),
    ],
    ids=[
        "chunked",
        "comment first",
        "CRLF",
        "with its length",
        "until close",
        "no blank line at the end",
        "no [DONE]",
        "no [DONE] and no blank line",
    ],
)
def test_a_stream_becomes_a_whole_answer(reply: Reply) -> None:
    with world(reply, QWEN_PROXY_IDLE_TIMEOUT=0.5) as here:
        answer = here.complete()

    assert json.loads(answer.body) == COMPLETION
    assert here.record.usage == Usage(prompt=3, completion=2, total=5)


def test_a_whole_answer_has_an_id_model_and_time_even_if_no_chunk_told() -> None:
    event = sse.render(
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    )
    with world(stream(event, sse.DONE)) as here:
        body = json.loads(here.complete().body)

    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "m"
    assert abs(body["created"] - time.time()) < 60


def test_an_emoji_whose_halves_came_in_two_chunks_reaches_a_client_without_stream() -> None:
    halves = [
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % half
        for half in (b"\\ud83d", b"\\ude00")
    ]
    with world(stream(*halves, FINISH, sse.DONE)) as here:
        body = json.loads(here.complete().body)

    assert body["choices"][0]["message"]["content"] == "😀"


# --- who is asked how ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "family", "explicit", "streamed"),
    [
        ("auto", Family.DASHSCOPE, False, True),
        ("auto", Family.SANDBOX, False, True),
        ("auto", Family.PORTAL, False, True),
        ("auto", Family.OTHER, False, False),
        ("auto", Family.DASHSCOPE, True, True),
        ("auto", Family.TOKEN_PLAN, True, True),
        ("auto", Family.OTHER, True, False),
        ("always", Family.OTHER, True, True),
        ("as-asked", Family.DASHSCOPE, False, False),
    ],
)
def test_who_is_asked_for_a_stream_in_place_of_a_whole_answer(
    mode: str, family: Family, explicit: bool, streamed: bool
) -> None:
    reply = stream(*GOOD) if streamed else whole(json.dumps(COMPLETION).encode())
    account = {"family": family, "explicit": explicit}
    with world(reply, account=account, QWEN_PROXY_UPSTREAM_STREAM=mode) as here:
        answer = here.complete()
        sent = here.sent()

    assert bool(sent.get("stream")) is streamed
    assert ("stream_options" in sent) is streamed
    assert json.loads(answer.body) == COMPLETION
    assert here.record.usage == Usage(prompt=3, completion=2, total=5)


def test_an_upstream_that_is_asked_as_the_client_asked_answers_to_the_letter() -> None:
    body = b'{ "id":"c1", "choices":[], "x":1.0 }'
    with world(whole(body), account={"family": Family.OTHER}) as here:
        answer = here.complete(temperature=0)

    assert answer.body == body
    assert here.record.usage is None


def test_an_upstream_that_does_not_stream_is_made_to() -> None:
    with world(whole(json.dumps(COMPLETION).encode())) as here:
        out = all_of(here.open(stream_options={"include_usage": True}))
        hidden = all_of(here.open())
        assert json.loads(here.complete().body) == COMPLETION

    values = [sse.parse(event) for event in sse.events(out)]
    assert {value["object"] for value in values} == {"chat.completion.chunk"}
    assert values[0]["choices"][0]["delta"]["content"] == "hi"
    assert values[-1]["usage"] == USAGE
    assert b"total_tokens" not in hidden


def test_a_whole_answer_that_was_not_asked_for_is_a_stream_all_the_same() -> None:
    """Model Studio does so for a client that did ask for none, in `as-asked` mode."""
    with world(stream(*GOOD), account={"family": Family.OTHER}) as here, pytest.raises(ApiError):
        here.complete()


# --- what goes wrong before the first event -----------------------------------------------------


def error_of(call: Callable[[World], object], here: World) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(here)
    assert SECRET not in caught.value.message
    return caught.value


REFUSAL = json.dumps(
    {"error": {"message": "why", "type": "t", "param": None, "code": "c"}}
).encode()
HTML = b"<html><body>Just a moment...</body></html>"


@EITHER
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (whole(REFUSAL, "400 Bad Request"), 400, "c"),
        (whole(b"data: " + REFUSAL + b"\n\n", "400 Bad Request"), 400, "c"),
        (whole(REFUSAL, "429 Too Many Requests"), 429, "rate_limit_exceeded"),
        (whole(REFUSAL, "503 Service Unavailable"), 503, "c"),
        (whole(HTML, "502 Bad Gateway", "text/html"), 502, "upstream_http_502"),
        (whole(b"", "503 Service Unavailable"), 503, "upstream_http_503"),
        (whole(b"", "404 Not Found"), 502, "upstream_http_404"),
        (whole(REFUSAL, "401 Unauthorized"), 502, "upstream_account_refused"),
        (whole(b"", "302 Found", location="https://x.example/"), 502, "upstream_http_302"),
        (then_close(whole(b"x" * 100, "500 Oops")[:-50]), 500, "upstream_http_500"),
        (whole(HTML, content_type="text/html"), 502, "upstream_http_200"),
        (whole(b""), 502, "upstream_http_200"),
        (whole(b"no json"), 502, "upstream_http_200"),
        (whole(b"[]"), 502, "upstream_http_200"),
        (whole(REFUSAL), 502, "c"),
        (whole(b'{"code":"InvalidParameter","message":"why"}'), 400, "InvalidParameter"),
        (whole(b'{"id":"x","choices":[]}'), 502, "upstream_empty"),
        (whole(b"{}"), 502, "upstream_empty"),
        (stream(b"data: " + REFUSAL + b"\n\n"), 502, "c"),
        (stream(ROLE, b"data: " + REFUSAL + b"\n\n"), 502, "c"),
        (
            stream(sse.render({"error": {"code": "limit_requests", "message": "m"}})),
            429,
            "rate_limit_exceeded",
        ),
        (stream(), 502, "upstream_empty"),
        (stream(sse.DONE), 502, "upstream_empty"),
        (stream(b": nothing\n\n", sse.DONE), 502, "upstream_empty"),
        (stream(USAGE_CHUNK, sse.DONE), 502, "upstream_empty"),
        (then_close(stream(end=False)), 502, "upstream_broken"),
        (then_close(stream(b"data: {", end=False)), 502, "upstream_broken"),
        (then_close(b""), 502, "upstream_closed"),
    ],
)
def test_a_failure_before_the_first_event_keeps_its_real_status(
    reply: Reply, status: int, code: str, call: Callable[[World], object]
) -> None:
    with world(reply) as here:
        error = error_of(call, here)

    assert (error.status, error.code) == (status, code)


@EITHER
def test_a_stream_of_role_and_done_only_is_no_answer(call: Callable[[World], object]) -> None:
    """No silent empty success, to either kind of client."""

    def consume(here: World) -> object:
        opened = call(here)
        if isinstance(opened, OpenStream):
            all_of(opened)
            assert not opened.chunks.complete  # the relay turns this into an error event
            raise UpstreamError("as the relay says", code="upstream_empty")
        return opened

    with world(stream(ROLE, sse.DONE)) as here:
        assert error_of(consume, here).code == "upstream_empty"


@EITHER
@pytest.mark.parametrize(
    "said",
    [
        b"",
        head(content_type="text/event-stream", transfer_encoding="chunked"),
        stream(b": waiting\n\n", end=False),
        stream(b"data: {", end=False),
    ],
    ids=["no head", "head only", "comment", "half an event"],
)
def test_silence_before_the_first_event_is_given_up(
    said: bytes, call: Callable[[World], object]
) -> None:
    def answer(peer: Peer) -> None:
        peer.send(said)
        peer.wait_until_closed()

    with world(answer, QWEN_PROXY_FIRST_BYTE_TIMEOUT=0.15) as here:
        started = time.monotonic()
        error = error_of(call, here)

    assert isinstance(error, UpstreamTimeout)
    assert (error.status, error.code) == (504, "upstream_timeout")
    assert time.monotonic() - started < 2


@EITHER
def test_heartbeats_do_not_put_off_the_first_events_deadline(
    call: Callable[[World], object],
) -> None:
    stop = threading.Event()

    def answer(peer: Peer) -> None:
        peer.send(head(content_type="text/event-stream", transfer_encoding="chunked"))
        while not stop.wait(0.02):
            peer.send(chunked(b": waiting\n\n", end=False))

    with world(answer, QWEN_PROXY_FIRST_BYTE_TIMEOUT=0.2) as here:
        started = time.monotonic()
        error = error_of(call, here)
        stop.set()

    assert error.code == "upstream_timeout"
    assert time.monotonic() - started < 2


def test_an_error_body_that_never_comes_leaves_the_status() -> None:
    def answer(peer: Peer) -> None:
        peer.send(head("429 Too Many Requests", content_length="100", retry_after="7"))
        peer.wait_until_closed()

    with world(answer, QWEN_PROXY_CONNECT_TIMEOUT=0.2) as here:
        error = error_of(World.open, here)

    assert (error.status, error.retry_after_s) == (429, 7)


@EITHER
def test_an_account_without_a_credential_is_told_with_its_remedy(
    call: Callable[[World], object],
) -> None:
    with world(stream(*GOOD), account={"token": None}) as here:
        error = error_of(call, here)
        assert here.server.requests == []

    assert isinstance(error, AccountUnavailable)
    assert (error.status, error.code, error.should_retry) == (503, "credentials_missing", False)
    assert "Set SOME_KEY." in error.message


def test_a_failed_attempt_leaves_no_connection_open() -> None:
    closed = threading.Event()

    def answer(peer: Peer) -> None:
        peer.send(stream(b"data: " + REFUSAL + b"\n\n", end=False))
        if peer.wait_until_closed():
            closed.set()

    with world(answer) as here:
        error_of(World.open, here)
        assert closed.wait(5)


# --- what goes wrong after it -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (then_close(stream(ROLE, TEXT, end=False)), "upstream_broken"),
        (then_close(stream(ROLE, TEXT, FINISH[:20], end=False)), "upstream_broken"),
        (stream(ROLE, TEXT), "upstream_broken"),
        (stream(ROLE, TEXT, TEXT[:-10]), "upstream_broken"),
        (stream(ROLE, TEXT, b"data: " + REFUSAL + b"\n\n"), "c"),
        (stream(ROLE), "upstream_empty"),
        (stream(chunk({"reasoning_content": "hm"})), "upstream_broken"),
    ],
    ids=[
        "cut",
        "cut in an event",
        "no finish",
        "half an event",
        "error",
        "role only",
        "thinking only",
    ],
)
def test_an_answer_that_breaks_off_is_never_a_whole_one(reply: Reply, code: str) -> None:
    with world(reply) as here:
        error = error_of(World.complete, here)

    assert (error.status, error.code) == (502, code)


def test_an_answer_that_stalls_is_given_up() -> None:
    def answer(peer: Peer) -> None:
        peer.send(stream(ROLE, TEXT, end=False))
        peer.wait_until_closed()

    with world(answer, QWEN_PROXY_IDLE_TIMEOUT=0.1) as here:
        error = error_of(World.complete, here)

    assert (error.status, error.code) == (504, "upstream_timeout")


HALF = b'data: {"choices":[{"index":0,"delta":{"content":"see [DONE] an'


def test_half_an_event_that_speaks_of_done_is_not_handed_on() -> None:
    with world(then_close(head(content_type="text/event-stream") + ROLE + TEXT + HALF)) as here:
        opened = here.open()
        with pytest.raises(UpstreamError) as caught:
            all_of(opened)

    assert opened.first == ROLE + TEXT
    assert caught.value.code == "upstream_broken"
    assert not opened.chunks.done


def test_what_follows_done_is_not_waited_for() -> None:
    def answer(peer: Peer) -> None:
        peer.send(stream(*GOOD, end=False))
        peer.wait_until_closed()

    with world(answer) as here:
        started = time.monotonic()
        assert json.loads(here.complete().body) == COMPLETION
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (whole(REFUSAL, "400 Bad Request"), 400, "c"),
        (whole(REFUSAL), 502, "c"),
        (whole(HTML, content_type="text/html"), 502, "upstream_http_200"),
        (then_close(head(content_length="9") + b"{}"), 502, "upstream_broken"),
    ],
)
def test_post_json_tells_failures_apart(reply: Reply, status: int, code: str) -> None:
    with world(reply) as here, pytest.raises(ApiError) as caught:
        here.client.post_json(here.account, "/embeddings", b"{}", headers={})

    assert (caught.value.status, caught.value.code) == (status, code)


def test_post_json_returns_the_bytes_the_value_and_the_id() -> None:
    with world(whole(b'{"a":1.0}', x_request_id="r1")) as here:
        assert here.client.post_json(here.account, "/embeddings", b"[]", headers={}) == (
            b'{"a":1.0}',
            {"a": 1.0},
            "r1",
        )
        assert here.server.requests[0].startswith(b"POST /v1/embeddings HTTP/1.1\r\n")
