"""Whatever fails at any point of an answer, its place, its slot and its upstream are given back."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from qwen_wsgi import greenlets
from qwen_wsgi.server import free_call
from tests.api.apps import App, in_front_of
from tests.fakes.raw_server import COMPLETION, RawServer, stream, whole
from tests.kit.servers import wait_until

pytestmark = pytest.mark.once

CHUNK = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%d"},'
    b'"finish_reason":null}]}\n\n'
)
END = (
    b'data: {"id":"c","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\n'
)
ANSWER = stream(CHUNK % 1, CHUNK % 2, END, b"data: [DONE]\n\n")
WHOLE = whole(json.dumps(COMPLETION).encode())

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
CALLS: dict[str, tuple[str, dict[str, Any], bytes]] = {
    "chat, streamed": ("/v1/chat/completions", {**ASKED, "stream": True}, ANSWER),
    "chat, whole": ("/v1/chat/completions", ASKED, WHOLE),
    "chat, put together": ("/v1/chat/completions", ASKED, ANSWER),
    "messages, streamed": ("/v1/messages", {**ASKED, "stream": True}, ANSWER),
    "responses, streamed": ("/v1/responses", {"model": "m", "input": "hi", "stream": True}, ANSWER),
    "responses, whole": ("/v1/responses", {"model": "m", "input": "hi"}, ANSWER),
    "completions, streamed": (
        "/v1/completions",
        {"model": "m", "prompt": "hi", "stream": True},
        ANSWER,
    ),
    "embeddings": (
        "/v1/embeddings",
        {"model": "m", "input": "hi"},
        whole(b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}]}'),
    ),
}

#: Models that only Qwen's hosts are asked for.
CALLS["ranking"] = (
    "/v1/rerank",
    {"model": "qwen3-rerank", "query": "hi", "documents": ["a", {"text": "b"}], "user": "u"},
    whole(b'{"results":[{"index":1,"relevance_score":1},{"index":0,"relevance_score":0.5}]}'),
)
CALLS["embeddings of pictures"] = (
    "/v1/embeddings",
    {"model": "qwen3-vl-embedding", "input": [{"image": "https://x/1.png"}]},
    whole(b'{"output":{"embeddings":[{"index":0,"embedding":[0.5]}]}}'),
)


def settings_for(call: str) -> dict[str, str]:
    """What the answer of a call needs."""
    _, body, answer = CALLS[call]
    if body["model"].startswith("qwen"):
        return {"QWEN_PROXY_HOST_FAMILIES": "127.0.0.1=dashscope"}
    return {"QWEN_PROXY_UPSTREAM_STREAM": "always"} if answer is ANSWER else {}


#: Giving back cannot be proven where giving back itself is what fails.
FREEING = {
    "Admission.leave",
    "Limiter.release",
    "Slot.release",
    "OpenStream.close",
    "PooledResponse._let_go",
    "Task._run",
    "free_call",
}


class Fault(Exception):
    """What the test raises."""


class Trap:
    """Raises at the first call of one function of the package, or notes all functions called."""

    def __init__(self, place: CodeType | None = None) -> None:
        self.place = place
        self.seen: dict[CodeType, None] = {}
        self.sprung = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or "/qwen_wsgi/" not in code.co_filename:
            return
        self.seen[code] = None
        if code is self.place and not self.sprung:
            self.sprung = True
            raise Fault(code.co_qualname)

    def __enter__(self) -> Trap:
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


def serve(
    app: App, path: str, body: dict[str, Any], *, step: Callable[[str], None] = lambda name: None
) -> bytes:
    """One request as gunicorn's gevent worker serves it, with its hook; `step` may raise."""
    environ = EnvironBuilder(path, method="POST", json=body).get_environ()
    environ["REMOTE_ADDR"] = "127.0.0.1"

    def start_response(status: str, headers: list[Any], exc_info: Any = None) -> Any:
        step("start_response")

    sent = b""
    try:
        answer = app.client.application(environ, start_response)
        try:
            for piece in answer:
                step("write")
                sent += piece
            step("end")
        finally:
            step("access log")
            step("close")
            getattr(answer, "close", lambda: None)()
    finally:
        free_call(None, None, environ, None)
    return sent


def check_free(app: App, server: RawServer) -> None:
    """Nothing is held: no place, no room for bodies, no slot, and no connection but idle ones."""
    services = app.services
    gc.collect()
    assert services.admission.in_flight == 0
    assert services.admission.bytes_in_flight == 0
    for account in services.pool.accounts():
        limiter = services.pool.limiter(account)
        assert (limiter.in_flight, limiter.waiting) == (0, 0)
    wait_until(lambda: sum(not each.closed for each in server._peers) <= 1, "closed connections")


@pytest.fixture(autouse=True)
def _small_heap() -> Iterator[None]:
    """Hundreds of collections follow, which need not look at what other tests have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def traced_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Trap]]:
    """The trap of a test is set in the greenlets of its tasks, too."""
    traps: list[Trap] = []
    run = greenlets.Task._run

    def traced(task: Any) -> None:
        if traps:
            sys.setprofile(traps[-1])
        try:
            run(task)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(greenlets.Task, "_run", traced)
    yield traps
    sys.setprofile(None)


# Where closing itself fails, a socket is closed when it is forgotten, which Python warns of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_in_any_function_on_the_way_leaves_nothing_behind(
    call: str, traced_tasks: list[Trap]
) -> None:
    path, body, answer = CALLS[call]
    always = settings_for(call)
    with in_front_of(answer, QWEN_PROXY_ACCOUNT_IN_FLIGHT=1, **always) as (app, server):
        serve(app, path, body)  # what happens once in a process is no part of the way
        with Trap() as noted:
            traced_tasks.append(noted)
            serve(app, path, body)
        check_free(app, server)
        places = [code for code in noted.seen if code.co_qualname not in FREEING]
        assert len(places) > 60

        failures = []
        for place in places:
            traced_tasks.append(Trap(place))
            with traced_tasks[-1], suppress(Exception):
                serve(app, path, body)
            sys.setprofile(None)
            try:
                check_free(app, server)
            except AssertionError:
                failures.append(place.co_qualname)
                app.services.admission.in_flight = 0
                app.services.admission.bytes_in_flight = 0
                for account in app.services.pool.accounts():
                    app.services.pool.limiter(account).in_flight = 0
        assert failures == [], failures


@pytest.mark.parametrize("name", ["start_response", "write", "end", "access log", "close"])
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_of_the_server_leaves_nothing_behind(call: str, name: str) -> None:
    """A NUL in a header, for one: gunicorn's start_response refuses it."""

    def step(at: str) -> None:
        if at == name:
            raise Fault(name)

    path, body, answer = CALLS[call]
    always = settings_for(call)
    with in_front_of(answer, QWEN_PROXY_ACCOUNT_IN_FLIGHT=1, **always) as (app, server):
        with pytest.raises(Fault):
            serve(app, path, body, step=step)
        check_free(app, server)
        assert serve(app, path, body)
