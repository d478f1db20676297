"""Reads streams and messages with the official SDK, whose typed models check every event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anthropic._streaming import SSEDecoder
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.messages import MessagesEncoder

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

Chunk = dict[str, Any]


def encoder(**options: Any) -> MessagesEncoder:
    """An encoder with an id, a model and a request id."""
    return MessagesEncoder(
        **{"id": "msg_1", "model": "qwen3.7-plus", "request_id": "req_1", **options}
    )


def encode(feeds: Sequence[Sequence[Chunk]], **options: Any) -> bytes:
    """The whole stream for chunks that come in groups."""
    made = encoder(**options)
    encoded = [made.feed(b"".join(map(sse.render, chunks))) for chunks in feeds]
    return b"".join([*encoded, made.end()])


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream; the line `event:` must say the type, and pings are left out."""
    found = []
    for event in SSEDecoder().iter_bytes(iter([stream])):
        value = event.json()
        assert event.event == value["type"]
        if value["type"] not in ("ping", "error"):
            _EVENT.validate_python(value, strict=False)
        if value["type"] != "ping":
            found.append(value)
    return found


def accumulated(stream: bytes) -> dict[str, Any]:
    """The message that the SDK puts together of a stream, as JSON."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events(stream):
        snapshot = accumulate_event(
            event=_EVENT.validate_python(event),
            current_snapshot=snapshot,
            json_bufs=buffers,
        )
    Message.model_validate(snapshot.to_dict())
    encoded: dict[str, Any] = snapshot.to_dict(exclude_unset=True)
    return encoded


def check_order(encoded: Sequence[dict[str, Any]]) -> None:
    """One block at a time, numbered from 0, each begun and ended once, between start and end."""
    kinds = [event["type"] for event in encoded]
    assert kinds[0] == "message_start"
    assert kinds.count("message_start") == 1
    open_block: int | None = None
    begun = 0
    for event in encoded[1:]:
        kind = event["type"]
        if kind == "content_block_start":
            assert open_block is None
            assert event["index"] == begun
            open_block, begun = begun, begun + 1
        elif kind.startswith("content_block"):
            assert event["index"] == open_block
            if kind == "content_block_stop":
                open_block = None
    if "error" not in kinds:
        assert open_block is None
        assert kinds[-2:] == ["message_delta", "message_stop"]
        assert (kinds.count("message_delta"), kinds.count("message_stop")) == (1, 1)


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **rest: Any) -> Chunk:
    """A chunk of chat with one choice."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **rest}


def call(index: int, arguments: str, id: str = "", name: str = "") -> Chunk:
    """A chunk with a fragment of a tool call."""
    fragment: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if id:
        fragment |= {"id": id, "type": "function"}
        fragment["function"]["name"] = name
    return chunk({"tool_calls": [fragment]})


def usage(prompt: int = 10, completion: int = 4, **details: int) -> Chunk:
    """The last chunk of a stream."""
    encoded: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if details:
        encoded["prompt_tokens_details"] = details
    return {"id": "c1", "choices": [], "usage": encoded}
