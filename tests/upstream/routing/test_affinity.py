"""Which conversation a call belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.state.shared_files import SharedFiles, key_of
from qwen_wsgi.upstream.routing.affinity import AFFINITY_S, Affinity, conversation_key
from tests.fakes.clock import FakeClock


def key(environ: dict[str, Any] | None = None, client: str = "k", **body: Any) -> bytes:
    return conversation_key(JsonObject(json.dumps(body).encode()), environ or {}, client=client)


def turns(*contents: Any, system: str = "You are an agent.") -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    told = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *told]


def test_the_next_turn_belongs_to_the_same_conversation() -> None:
    first = key(messages=turns("Fix the bug."))
    assert key(messages=turns("Fix the bug.", "Done.", "Thanks.")) == first
    assert key(messages=turns("Write a test.")) != first
    assert key(messages=turns("Fix the bug.", system="You are a poet.")) != first
    assert key(messages=turns("Fix the bug."), client="other") != first


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_cache_key": "s1"},
        {"metadata": {"sessionId": "s1"}},
        {"metadata": {"user_id": "s1"}},
        {"environ": {"HTTP_SESSION_ID": "s1"}},
        {"environ": {"HTTP_X_CLAUDE_CODE_SESSION_ID": "s1"}},
    ],
)
def test_what_the_client_says_counts_more_than_the_messages(told: dict[str, Any]) -> None:
    first = key(messages=turns("a"), **told)
    assert key(messages=turns("b"), **told) == first
    assert key(messages=turns("a")) != first
    assert key(messages=turns("a"), client="other", **told) != first


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": []},
        {"messages": ["x", 1]},
        {"messages": [{"role": "user"}], "metadata": [], "prompt_cache_key": 7},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
    ],
)
def test_odd_bodies_are_no_fault(body: dict[str, Any]) -> None:
    assert len(key(**body)) == 8


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def affinity(clock: FakeClock) -> Affinity:
    return Affinity(None, boottime=clock.monotonic)


class TestConversations:
    def test_they_are_remembered_for_a_while(self, affinity: Affinity, clock: FakeClock) -> None:
        talk, account = key_of("talk"), key_of("a")
        assert affinity.account_of(talk) is None
        affinity.remember(talk, account)
        clock.advance(AFFINITY_S - 1)
        assert affinity.account_of(talk) == account
        affinity.remember(talk, key_of("b"))
        assert affinity.account_of(talk) == key_of("b")
        clock.advance(AFFINITY_S)
        assert affinity.account_of(talk) is None

    def test_the_oldest_makes_room(self, affinity: Affinity, clock: FakeClock) -> None:
        for number in range(20_000):
            clock.advance(0.001)
            affinity.remember(key_of(str(number)), key_of("a"))
        known = sum(affinity.account_of(key_of(str(n))) is not None for n in range(19_000, 20_000))
        assert known > 900

    def test_workers_share_them(self, tmp_path: Path) -> None:
        one, other = Affinity(SharedFiles(tmp_path)), Affinity(SharedFiles(tmp_path))
        one.remember(key_of("talk"), key_of("me"))
        assert other.account_of(key_of("talk")) == key_of("me")
