"""Turns the answer back for a client that sent `functions`, OpenAI's form before `tools`.

Qwen hosts know only tools, so `upstream.adapt` turns functions into those, and this module turns
the tool call of the answer into a `function_call`, with its finish reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.stream import ChunkStream
from qwen_wsgi.protocol.json_access import objects


class LegacyChunkStream(ChunkStream):
    """A stream that sends its tool call as `function_call`."""

    def feed(self, block: bytes) -> bytes:
        return _rewritten(super().feed(block))

    def end(self) -> bytes:
        return _rewritten(super().end())


def _rewritten(block: bytes) -> bytes:
    if b'tool_calls"' not in block:
        return block
    return b"".join(_event(event) for event in sse.events(block))


def _event(event: bytes) -> bytes:
    chunk = sse.parse(event)
    if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):
        return event + b"\n\n"
    choices = [_choice(choice, "delta") for choice in chunk["choices"]]
    return sse.render({**chunk, "choices": choices})


def completion(value: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a whole `chat.completion` into the legacy form."""
    choices = value.get("choices")
    if not isinstance(choices, list):
        return dict(value)
    return {**value, "choices": [_choice(choice, "message") for choice in choices]}


def _choice(choice: Any, part: str) -> Any:
    if not isinstance(choice, dict):
        return choice
    changed = dict(choice)
    if choice.get("finish_reason") == "tool_calls":
        changed["finish_reason"] = "function_call"
    message = choice.get(part)
    if isinstance(message, dict) and "tool_calls" in message:
        rest = {name: each for name, each in message.items() if name != "tool_calls"}
        call = _first_call(message["tool_calls"])
        changed[part] = rest if call is None else {**rest, "function_call": call}
    return changed


def _first_call(calls: Any) -> dict[str, Any] | None:
    """The first call: the legacy form has room for one, so others are left out."""
    for call in objects(calls):
        if call.get("index", 0) == 0:
            function = call.get("function")
            return function if isinstance(function, dict) else None
    return None
