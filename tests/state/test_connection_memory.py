"""What WebSockets keep in memory: conversations that make room for requests and for each other."""

from __future__ import annotations

from typing import Any

from qwen_wsgi.state.connection_memory import ConnectionMemory, Conversation, conversation_of


def said(text: str) -> list[dict[str, Any]]:
    return [{"type": "message", "content": text}]


def of_bytes(size: int) -> Conversation:
    return Conversation((b" " * size,))


def test_a_conversation_grows_and_branches() -> None:
    first = Conversation().plus(said("a"), stored=False)
    left = first.plus(said("b"), stored=True)
    right = first.plus(said("c"), stored=False)

    assert [item["content"] for item in left.items()] == ["a", "b"]
    assert [item["content"] for item in right.items()] == ["a", "c"]
    assert (first.stored, left.stored) == (False, True)
    assert left.parts[0] is right.parts[0]
    # Whoever gets items may change them.
    left.items()[0]["content"] = "changed"
    assert left.items()[0]["content"] == "a"


def test_one_from_the_store_has_its_items() -> None:
    assert conversation_of(said("a")).items() == said("a")
    assert conversation_of([]).items() == []
    assert conversation_of([]).stored


def test_only_the_connection_itself_can_recall_it() -> None:
    memory = ConnectionMemory(1000)
    memory.keep("one", "resp_1", of_bytes(10))

    assert memory.recall("one", "resp_1") == of_bytes(10)
    assert memory.recall("two", "resp_1") is None
    memory.forget("one", "resp_1")
    memory.forget("one", "resp_1")
    assert memory.recall("one", "resp_1") is None
    assert memory.held == 0


def test_what_was_not_used_for_the_longest_goes_first() -> None:
    memory = ConnectionMemory(100)
    for name in ("a", "b", "c"):
        memory.keep(name, "r", of_bytes(30))
    memory.recall("a", "r")

    memory.keep("d", "r", of_bytes(30))

    assert [name for name in "abcd" if memory.recall(name, "r")] == ["a", "c", "d"]
    assert memory.held == 90


def test_one_too_large_is_not_kept() -> None:
    memory = ConnectionMemory(100)
    memory.keep("a", "r", of_bytes(101))

    assert memory.recall("a", "r") is None
    assert memory.held == 0


def test_the_same_response_is_counted_once() -> None:
    memory = ConnectionMemory(100)
    for _ in range(5):
        memory.keep("a", "r", of_bytes(40))

    assert memory.held == 40


def test_requests_take_the_room_of_conversations_and_no_more_than_there_is() -> None:
    memory = ConnectionMemory(100)
    memory.keep("a", "r", of_bytes(60))

    assert memory.take(40)
    assert memory.recall("a", "r")
    assert memory.take(60)
    assert memory.recall("a", "r") is None
    assert not memory.take(1)
    assert memory.held == 100

    memory.give(100)
    assert memory.held == 0
    assert memory.take(100)
