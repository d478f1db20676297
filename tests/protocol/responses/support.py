"""Builds requests and chunks, and reads events as a client does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openai.types.responses import Response, ResponseInputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.responses import ResponseEncoder, ResponsesRequest, parse_request

ID = "resp_0123456789abcdef"
STEM = "0123456789abcdef"
MODEL = "qwen3.7-plus"

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
INPUT_ITEMS: TypeAdapter[Any] = TypeAdapter(ResponseInputItem)

Event = dict[str, Any]


def body(**members: Any) -> JsonObject:
    return JsonObject(compact(members).encode())


def request(
    input: Any = "hi",
    *,
    history: Sequence[Mapping[str, Any]] = (),
    stored: Mapping[str, Mapping[str, Any]] | None = None,
    strict: bool = False,
    **members: Any,
) -> ResponsesRequest:
    return parse_request(
        body(input=input, **members), history=history, stored=stored or {}, seed=ID, strict=strict
    )


def chat(input: Any = "hi", **members: Any) -> dict[str, Any]:
    """The chat request, parsed."""
    value = json.loads(request(input, **members).chat.body.render())
    assert isinstance(value, dict)
    return value


def messages(input: Any, **members: Any) -> list[dict[str, Any]]:
    return list(chat(input, **members)["messages"])


def encoder(its: ResponsesRequest | None = None) -> ResponseEncoder:
    return ResponseEncoder(its or request(), id=ID, created=7, model=MODEL)


def chunk(delta: Any, finish: Any = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": MODEL}
    return sse.render({**head, "choices": [choice], **more})


def usage_chunk(**details: Any) -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16, **details}
    return sse.render({"choices": [], "usage": usage})


def call(arguments: str, index: int = 0, **more: Any) -> dict[str, Any]:
    """A delta with a fragment of a call; `id` and `name` begin one."""
    fragment: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if "name" in more:
        fragment["function"]["name"] = more.pop("name")
    return {"tool_calls": [{**fragment, **more}]}


def read(encoded: bytes, *, typed: bool = True) -> list[Event]:
    """The events as a client reads them; each is checked against OpenAI's model of it."""
    events = []
    for block in encoded.split(b"\n\n"):
        if not block:
            continue
        first, second = block.decode().split("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}"
        if typed:
            EVENTS.validate_python(event)
        events.append(event)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    return events


def answered(
    chunks: Iterable[bytes], its: ResponsesRequest | None = None
) -> tuple[list[Event], dict[str, Any]]:
    """The events of an answer from its chunks, and the response at its end."""
    speaks = encoder(its)
    encoded = b"".join([speaks.feed(each) for each in chunks]) + speaks.end()
    assert speaks.response is not None
    Response.model_validate(speaks.response)
    return read(encoded), speaks.response


def types(events: Iterable[Event]) -> list[str]:
    """The types in order without `response.`, repeated ones once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
