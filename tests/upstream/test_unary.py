"""Unary calls: several requests to one account at a time, answered in order, stopped as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent
import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import Scope, UpstreamError
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.state.database.cached_answers import CachedAnswers
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.refused_inputs import RefusedInputs
from qwen_wsgi.upstream.answer_cache import AnswerCache
from qwen_wsgi.upstream.client import JsonAnswer
from qwen_wsgi.upstream.executor import Executor, UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.batch_chat import BatchChat
from tests.fakes.upstream import settings_of
from tests.upstream.retry_world import World, failure


class FakeClient:
    """Answers each body with itself, after the time that the body says in milliseconds."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.running = 0
        self.most = 0
        self.stopped: list[bytes] = []

    def post_json(
        self,
        account: Account,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        at_origin: bool,
        request_id: str,
        size: AnswerSize | None,
    ) -> JsonAnswer:
        assert path == "/embeddings"
        assert headers == {"User-Agent": "x"}
        self.asked.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            name, _, wait = body.partition(b"@")
            gevent.sleep(int(wait) / 1000)
            if name == b"bad":
                raise UpstreamError("no", status=429, code="limit_requests")
            return JsonAnswer(body, {"body": body}, "up-1")
        except gevent.GreenletExit:
            self.stopped.append(body)
            raise
        finally:
            self.running -= 1


def executor_of(world: World, client: Any) -> Executor:
    settings = settings_of()
    return Executor(
        settings,
        world.router,
        world.retrier,
        client,
        world.clock,
        RefusedInputs(None),
        BatchChat(settings, world.pool),
        AnswerCache(
            settings, CachedAnswers(database_in(None, world.clock), world.clock, max_bytes=0)
        ),
    )


def asked(client: FakeClient, *bodies: bytes) -> list[bytes]:
    return answered(World("a"), client, *bodies)


def answered(world: World, client: FakeClient, *bodies: bytes) -> list[bytes]:
    upstream: Any = client
    executor = executor_of(world, upstream)
    call = UnaryCall(
        "/embeddings", {"User-Agent": "x"}, world.record, lambda route: UnaryRequests(bodies)
    )
    answer = executor.unary(call, world.plan())
    assert answer is not None
    assert answer.route.account.name == "a"
    return [each.value["body"] for each in answer.answers]


def test_answers_come_in_the_order_of_the_bodies_whatever_the_time_of_each() -> None:
    bodies = [b"%d@%d" % (n, (n * 7) % 20) for n in range(20)]
    client = FakeClient()

    assert asked(client, *bodies) == bodies
    assert sorted(client.asked) == sorted(bodies)


def test_a_few_calls_run_at_a_time_and_no_more() -> None:
    client = FakeClient()

    asked(client, *(b"%d@5" % n for n in range(20)))

    assert 2 <= client.most <= 4


def test_one_body_is_asked_without_further_ado() -> None:
    client = FakeClient()

    assert asked(client, b"a@0") == [b"a@0"]


def test_the_first_failure_is_raised_and_stops_the_others() -> None:
    client = FakeClient()

    with pytest.raises(UpstreamError) as caught:
        asked(client, b"a@1", b"bad@5", b"slow@5000", b"slower@5000", *[b"never@0"] * 20)
    gevent.sleep(0)

    assert caught.value.code == "limit_requests"
    assert client.running == 0
    assert set(client.stopped) >= {b"slow@5000"}
    assert client.asked.count(b"never@0") < 5


def test_a_caller_that_is_stopped_stops_all_calls() -> None:
    """As by a client that goes away: the exception is thrown into the greenlet that waits."""
    client = FakeClient()
    caller = gevent.spawn(asked, client, *[b"slow@5000"] * 6)
    gevent.sleep(0.02)
    assert client.running == 4

    caller.kill()
    gevent.sleep(0)

    assert client.running == 0
    assert len(client.asked) == 4


def test_the_slot_is_free_after_the_call_and_its_facts_are_in_the_record() -> None:
    world = World("a")

    answered(world, FakeClient(), b"a@0", b"b@0")

    (route,) = world.plan().routes
    assert world.pool.limiter(route.account).in_flight == 0
    record = world.record
    assert (record.account, record.attempts, record.upstream_request_id) == ("a", 1, "up-1")


class Refusing(FakeClient):
    """Fails every request."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__()
        self.error = error

    def post_json(
        self,
        account: Account,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        at_origin: bool,
        request_id: str,
        size: AnswerSize | None,
    ) -> JsonAnswer:
        self.asked.append(body)
        raise self.error


@pytest.mark.parametrize("cause", ["not_found", "wrong_address"])
def test_an_account_without_the_path_is_no_failure_where_the_caller_says_so(cause: str) -> None:
    world = World("a")
    client: Any = Refusing(failure(Scope.ACCOUNT_MODEL, retry=False, cause=cause))
    executor = executor_of(world, client)

    def ask(*absent: str) -> object:
        bodies = UnaryRequests([b"a@0"], ("stream:whole",))
        call = UnaryCall("/completions", {}, world.record, lambda route: bodies, absent)
        return executor.unary(call, world.plan())

    assert ask("not_found", "wrong_address") is None
    assert world.cooldowns.is_clear, "the account can still be asked, for chats as well"
    assert world.record.changed == ("stream:whole",)
    with pytest.raises(UpstreamError):
        ask()
    assert not world.cooldowns.is_clear


class LosesOne(Refusing):
    """Answers the first request with a failure, and the others."""

    def post_json(self, account: Account, path: str, body: bytes, **options: Any) -> JsonAnswer:
        if self.asked:
            self.asked.append(body)
            return JsonAnswer(body, {"begun": "again"}, "")
        return super().post_json(account, path, body, **options)


def recovered(cause: str, found: Any) -> tuple[Any, LosesOne, list[Any]]:
    """What becomes of a lost answer; the client; and with what `recover` was called."""
    world, asked = World("a"), []
    client: Any = LosesOne(failure(Scope.REQUEST, retry=True, cause=cause))
    executor = executor_of(world, client)

    def recover(route: Any, began: float, error: UpstreamError) -> Any:
        asked.append((route.account.name, began, error.failure and error.failure.cause))
        if isinstance(found, Exception):
            raise found
        return found

    call = UnaryCall(
        "/x", {}, world.record, lambda _: UnaryRequests([b"a"]), once=True, recover=recover
    )
    try:
        answer = executor.unary(call, world.plan())
    except UpstreamError as error:
        return error, client, asked
    assert answer is not None
    return answer.answers[0].value, client, asked


@pytest.mark.parametrize("cause", ["closed", "broken", "timeout", "bad_gateway", "no_answer"])
def test_what_was_done_after_all_is_the_answer(cause: str) -> None:
    value, client, asked = recovered(cause, {"begun": "before"})

    assert value == {"begun": "before"}
    assert client.asked == [b"a"]
    assert [(name, why) for name, _, why in asked] == [("a", cause)]


def test_what_was_not_done_is_asked_for_again() -> None:
    value, client, _ = recovered("closed", None)

    assert value == {"begun": "again"}
    assert client.asked == [b"a", b"a"]


def test_where_that_is_unclear_nobody_asks_again() -> None:
    unclear = UpstreamError("unclear", status=504, should_retry=False)
    error, client, _ = recovered("closed", unclear)

    assert error is unclear
    assert client.asked == [b"a"]


def test_a_refusal_is_no_lost_answer() -> None:
    value, client, asked = recovered("rate_limited", {"begun": "before"})

    assert value == {"begun": "again"}
    assert len(client.asked) == 2
    assert asked == []
