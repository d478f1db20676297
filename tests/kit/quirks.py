"""Generates streams with the quirks of Qwen's hosts, and reads streams as a client does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream

Call = tuple[str, str, str]  # id, name, arguments
Fragment = dict[str, Any]

HEAD = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 7,
    "model": "qwen3.7-plus",
}
NULLS = {"role": None, "function_call": None, "refusal": None, "tool_calls": None}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: Any, finish: str | None = None, index: int = 0, **extra: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"choices": [choice], **HEAD, **extra}


def calls_chunk(*fragments: Fragment, **delta: Any) -> dict[str, Any]:
    return chunk({"content": None, "tool_calls": list(fragments), **delta})


def fragment(
    index: int | None, id: str | None, name: str | None, arguments: str | None
) -> Fragment:
    """A fragment without the members that are None; arguments become null instead."""
    function: dict[str, Any] = {"arguments": arguments}
    if name is not None:
        function["name"] = name
    made: Fragment = {"function": function, "type": "function"}
    if index is not None:
        made["index"] = index
    if id is not None:
        made["id"] = id
    return made


def stream_of(*chunks: dict[str, Any] | bytes) -> bytes:
    return b"".join(each if isinstance(each, bytes) else sse.render(each) for each in chunks)


def fed(stream: ChunkStream, pieces: Sequence[bytes]) -> bytes:
    """The bytes that a client gets if the upstream's bytes come in these pieces."""
    blocks = sse.EventBlocks()
    return b"".join(stream.feed(block) for block in map(blocks.push, pieces) if block) + (
        stream.end()
    )


def forwarded(
    pieces: Sequence[bytes] | bytes, **arguments: Any
) -> tuple[list[dict[str, Any]], bytes]:
    """The events that a client gets for an upstream's bytes: their values, and the bytes."""
    stream = ChunkStream(**{"hide_usage": False, **arguments})
    out = fed(stream, [pieces] if isinstance(pieces, bytes) else pieces)
    return [sse.parse(event) for event in sse.events(out)], out


def summed(values: Sequence[dict[str, Any]]) -> list[Call]:
    """Assemble the calls as a simple client does: by index, concatenating every text."""
    calls: dict[int, list[str]] = {}
    for value in values:
        for choice in value["choices"]:
            for piece in choice["delta"].get("tool_calls") or ():
                call = calls.setdefault(piece["index"], ["", "", ""])
                function = piece.get("function") or {}
                call[0] += piece.get("id", "")
                call[1] += function.get("name", "")
                call[2] += function.get("arguments", "")
    assert list(calls) == sorted(calls) == list(range(len(calls)))  # as openai.lib needs them
    return [(id, name, arguments) for id, name, arguments in calls.values()]


# --- tool calls in the ways that hosts send them -------------------------------------------------

#: Whether fragments of different calls may alternate, and whether the ids arrive.
STYLES = {
    "as OpenAI does": (True, True),
    "empty ids and names": (True, True),
    "everything again": (True, True),
    "a new id in every fragment": (True, True),
    "indexes from 1": (True, True),
    "one index": (False, True),
    "no index": (False, True),
    "one id": (True, False),
    "no id": (True, False),
    "no id and one index": (False, False),
    "the id late": (True, False),
    "each in one fragment": (False, True),
    "each in one fragment without id": (False, False),
    "the first call once more": (False, True),
}


def in_style(style: str, number: int, call: Call, pieces: list[str]) -> list[Fragment]:
    """The fragments of one call."""
    id, name, arguments = call
    if style.startswith("each in one fragment"):
        return [fragment(number, None if "without id" in style else id, name, arguments)]
    index: int | None = number
    later: tuple[str | None, str | None] = ("", None)
    match style:
        case "as OpenAI does":
            later = (None, None)
        case "empty ids and names":
            later = ("", "")
        case "everything again":
            later = (id, name)
        case "indexes from 1":
            index = number + 1
        case "one index":
            index = 0
        case "no index":
            index, later = None, (None, None)
        case "one id":
            id, later = "call_same", (None, None)
        case "no id":
            later = (None, None)
        case "no id and one index":
            index, later = 0, (None, name)
        case "the id late":
            later = (id, None)
    first = fragment(index, None if "no id" in style or "late" in style else id, name, None)
    rest = [fragment(index, *later, piece) for piece in pieces]
    if style == "a new id in every fragment":
        rest = [{**each, "id": f"{id}-{i}"} for i, each in enumerate(rest)]
    return [first, *rest, fragment(index, *later, None)]


JSON_OBJECTS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=12) | st.integers() | st.just({}) | st.none(), max_size=3
).map(lambda value: json.dumps(value, ensure_ascii=False))

CALLS = st.lists(
    st.tuples(
        st.from_regex(r"call_[a-z0-9]{1,6}", fullmatch=True),
        st.sampled_from(["look", "listen", "f"]),
        JSON_OBJECTS,
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda call: call[0],
)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """Pieces that join to the text; some may be empty."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def quirky_calls(draw: st.DrawFn, calls: list[Call], style: str) -> list[dict[str, Any]]:
    """The chunks of a stream that makes these calls."""
    alternate, _ = STYLES[style]
    queues = [
        in_style(style, number, call, draw(cut(call[2]))) for number, call in enumerate(calls)
    ]
    fragments = []
    if alternate and draw(st.booleans()):
        # A call begins after those before it did: its number is its place.
        fragments = [queue.pop(0) for queue in queues]
        while queues := [queue for queue in queues if queue]:
            fragments.append(draw(st.sampled_from(queues)).pop(0))
    else:
        fragments = [each for queue in queues for each in queue]
    if style == "the first call once more":
        fragments.append(fragment(0, *calls[0]))
    chunks = []
    while fragments:
        size = draw(st.sampled_from([1, 1, 1, 2, 3]))
        chunks.append(calls_chunk(*fragments[:size]))
        del fragments[:size]
    return [chunk({"role": "assistant", "content": ""}), *chunks, chunk({}, "tool_calls")]
