"""Gives tool calls the client's names again, where the upstream was sent other ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.functions import LegacyChunkStream
from qwen_wsgi.protocol.chat.stream import ChunkStream


class RenamedChunkStream(ChunkStream):
    """A stream whose tool calls have other names than the client's.

    Args:
        names: the client's names by those that the upstream knows.
    """

    def __init__(
        self,
        *,
        names: Mapping[str, str],
        hide_usage: bool,
        normalize: bool = True,
        model: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(hide_usage=hide_usage, normalize=normalize, model=model)
        self._names = names
        self._quoted = tuple(f'"{name}"'.encode() for name in names)

    def feed(self, block: bytes) -> bytes:
        return self._rewritten(super().feed(block))

    def end(self) -> bytes:
        return self._rewritten(super().end())

    def _rewritten(self, block: bytes) -> bytes:
        if not any(name in block for name in self._quoted):
            return block
        return b"".join(self._changed(event) for event in sse.events(block))

    def _changed(self, event: bytes) -> bytes:
        chunk = sse.parse(event)
        if not isinstance(chunk, dict):
            return event + b"\n\n"
        changed = _with_names(chunk, "delta", self._names)
        return event + b"\n\n" if changed is chunk else sse.render(changed)


class RenamedLegacyChunkStream(LegacyChunkStream, RenamedChunkStream):
    """Such a stream for a client of the legacy `functions`."""


def completion(value: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename the calls of a whole `chat.completion`; the same object if there are none.

    Args:
        names: as for `RenamedChunkStream`.
    """
    return _with_names(value, "message", names)


def _with_names(value: dict[str, Any], part: str, names: Mapping[str, str]) -> dict[str, Any]:
    choices = value.get("choices")
    if not isinstance(choices, list):
        return value
    changed = [_choice(choice, part, names) for choice in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return value
    return {**value, "choices": changed}


def _choice(choice: Any, part: str, names: Mapping[str, str]) -> Any:
    message = choice.get(part) if isinstance(choice, dict) else None
    if not isinstance(message, dict) or not isinstance(message.get("tool_calls"), list):
        return choice
    calls = message["tool_calls"]
    changed = [_call(call, names) for call in calls]
    if all(new is old for new, old in zip(changed, calls, strict=True)):
        return choice
    return {**choice, part: {**message, "tool_calls": changed}}


def _call(call: Any, names: Mapping[str, str]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or (name := function.get("name")).__class__ is not str:
        return call
    if name not in names:
        return call
    return {**call, "function": {**function, "name": names[name]}}
