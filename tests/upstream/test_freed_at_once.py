"""What a call held is free when the call has ended, also when it failed.

An error that is raised by a name knows a frame that knows the error. Such a circle, and all that
hangs on it (the request's body, a socket), would wait for the garbage collector, whose full rounds
gunicorn.conf.py makes rare.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import gevent
import pytest

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import ApiError, ClientGone, forget_frames
from qwen_wsgi.greenlets import Task
from qwen_wsgi.upstream.http import http1
from qwen_wsgi.upstream.http.body import BodyReader
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Route
from tests.fakes.raw_server import Peer, RawServer, whole
from tests.fakes.upstream import SECRET, settings_of
from tests.upstream.relay_world import World as Stream
from tests.upstream.retry_world import World as Accounts
from tests.upstream.retry_world import failure, throttled


class Body:
    """Stands for what a call holds."""


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def freed_by(use: Callable[[Body], object]) -> bool:
    """Whether nothing holds the body any more, once `use` of it is over."""
    body = Body()
    known = weakref.ref(body)
    use(body)
    del body
    return known() is None


def fails_with(body: Body, error: BaseException) -> None:
    """Raises by a name, from a frame that knows the body."""
    raise error


def fails(body: Body) -> None:
    raise ApiError("no")


def test_the_collector_is_what_would_free_a_circle() -> None:
    def use(body: Body) -> None:
        with contextlib.suppress(ApiError):
            fails_with(body, ApiError("no"))

    assert not freed_by(use)


@pytest.mark.parametrize("caused_by", [None, ValueError("the cause")])
def test_a_failure_without_its_frames_holds_nothing(caused_by: ValueError | None) -> None:
    def use(body: Body) -> None:
        try:
            try:
                fails_with(body, caused_by or ApiError("the only one"))
            except ValueError as error:
                raise ApiError("what it means") from error
        except ApiError as error:
            forget_frames(error)

    assert freed_by(use)


@pytest.mark.parametrize(
    ("outcomes", "end"),
    [
        pytest.param((lambda: failure(retry=False, elsewhere=False),), "some_cause", id="refused"),
        pytest.param((failure, failure, failure), "some_cause", id="given-up"),
        pytest.param((failure, None), "ok", id="made-good"),
        pytest.param((lambda: throttled(1.0), None), "ok", id="after-a-wait"),
    ],
)
def test_an_attempt_holds_nothing_after_its_call(
    outcomes: tuple[Callable[[], ApiError] | None, ...], end: str
) -> None:
    world = Accounts("a", QWEN_PROXY_RETRY_BUDGET=9)
    told: list[str] = []

    def use(body: Body) -> None:
        left = list(outcomes)

        def ask(route: Route, slot: Slot) -> str:
            if (failed := left.pop(0)) is not None:
                fails_with(body, failed())
            return "ok"

        try:
            told.append(world.retrier.run(world.plan(), ask, world.record))
        except ApiError as error:
            told.append(error.code or "")

    assert freed_by(use)
    assert told == [end]


def test_a_task_that_failed_holds_nothing() -> None:
    def use(body: Body) -> None:
        task: Task[None] = Task(lambda: fails(body), discard=lambda _: None)
        assert task.wait(None)
        with contextlib.suppress(ApiError):
            task.take()

    assert freed_by(use)


@pytest.mark.parametrize("begins", [False, True])
def test_a_task_that_was_cancelled_holds_nothing(begins: bool) -> None:
    def use(body: Body) -> None:
        def work() -> None:
            gevent.sleep(10)
            fails_with(body, ApiError("too late"))

        task: Task[None] = Task(work, discard=lambda _: None)
        if begins:
            gevent.sleep(0)
        task.cancel()

    def use_and_let_it_end(body: Body) -> None:
        use(body)
        gevent.sleep(0)

    assert freed_by(use_and_let_it_end)


def test_a_task_whose_failure_nobody_asked_for_holds_nothing() -> None:
    def use(body: Body) -> None:
        task: Task[None] = Task(lambda: fails(body), discard=lambda _: None)
        assert task.wait(None)
        task.cancel()

    assert freed_by(use)


def test_a_stream_that_broke_records_its_failure_without_frames() -> None:
    world = Stream(ApiError("it broke", code="upstream_broken"))

    world.run()

    assert world.record.error_code == "upstream_broken"
    (error,) = world.late
    assert error.__traceback__ is None


def test_the_record_of_a_client_that_left_lets_go_of_what_it_was_told_by() -> None:
    call = CallRecord(
        request_id="r", client="-", method="POST", path="/v1/chat/completions", started_at=0.0
    )

    def use(body: Body) -> None:
        try:
            fails_with(body, ClientGone("the client closed the connection"))
        except ClientGone as gone:
            call.fail(gone)

    assert freed_by(use)
    assert call.outcome == "client_gone"


def test_a_connection_that_was_closed_meanwhile_leaves_no_request_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """urllib3 keeps the failure of the first try in a frame that the failure knows."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http1, "look_at", lambda sock: lambda: False)
    closed = threading.Event()

    def promise_and_close(peer: Peer) -> None:
        peer.send(whole(b"one"))
        peer.close()
        closed.set()

    with (
        RawServer(promise_and_close, whole(b"two")) as server,
        contextlib.closing(Transport(settings_of())) as transport,
    ):
        token = AccessToken(SECRET, server.url, None)

        def use(body: Body) -> None:
            reader = BodyReader(
                transport.send("POST", token, "/chat", b"{}", headers={}, read_timeout_s=5)
            )
            reader.read_all(5, limit=100)
            reader.close()

        assert freed_by(use)
        assert closed.wait(5)
        assert freed_by(use)
        assert server.connections == 2
