"""Embeddings of many rows: several calls at a time, answered in order, stopped as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent
import pytest

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.upstream.embed import embed
from tests.fakes.upstream import account_of


class FakeClient:
    """Answers each body with itself, after the time that the body says in milliseconds."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.running = 0
        self.most = 0
        self.stopped: list[bytes] = []

    def post_json(
        self, account: Account, path: str, body: bytes, *, headers: Mapping[str, str]
    ) -> tuple[bytes, Any, str]:
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
            return body, {"body": body}, "up-1"
        except gevent.GreenletExit:
            self.stopped.append(body)
            raise
        finally:
            self.running -= 1


def asked(client: FakeClient, *bodies: bytes) -> list[bytes]:
    answers = embed(client, account_of(), list(bodies), headers={"User-Agent": "x"})  # type: ignore[arg-type]  # all that it uses of a client
    return [answer["body"] for answer in answers]


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
