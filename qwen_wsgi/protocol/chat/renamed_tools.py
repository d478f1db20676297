"""Gives tool calls the form and the names of the client's tools again, where the upstream was sent
other ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat.functions import LegacyChunkStream
from qwen_wsgi.protocol.chat.stream import ChunkStream
from qwen_wsgi.protocol.chat.tool_calls import arguments_of
from qwen_wsgi.protocol.json_access import choice_number, mapping, objects
from qwen_wsgi.protocol.translation.free_text import FreeText, input_of

_CALLS = b'"tool_calls":'
_FINISH = b'"finish_reason":"'


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
        if not self._matters(block):
            return block
        return b"".join(self._changed(event) for event in sse.events(block))

    def _matters(self, block: bytes) -> bool:
        return any(name in block for name in self._quoted)

    def _changed(self, event: bytes) -> bytes:
        chunk = sse.parse(event)
        if not isinstance(chunk, dict):
            return event + b"\n\n"
        changed = self._in_chunk(chunk)
        return event + b"\n\n" if changed is chunk else sse.render(changed)

    def _in_chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        return _with_names(chunk, "delta", self._names)


class RenamedLegacyChunkStream(LegacyChunkStream, RenamedChunkStream):
    """Such a stream for a client of the legacy `functions`."""


class CustomChunkStream(RenamedChunkStream):
    """A stream for a client whose custom tools became functions.

    OpenAI streams a custom call as `{"index", "id", "type": "custom", "custom": {"name", "input"}}`
    and then as `{"index", "custom": {"input"}}`; its schema of chunks does not have that yet.

    Args:
        names: as for `RenamedChunkStream`.
        customs: the names of those functions, as the upstream knows them.
    """

    def __init__(
        self,
        *,
        names: Mapping[str, str],
        customs: Collection[str],
        hide_usage: bool,
        normalize: bool = True,
        model: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(names=names, hide_usage=hide_usage, normalize=normalize, model=model)
        self._quoted += tuple(f'"{name}"'.encode() for name in customs)
        self._customs = customs
        #: The texts of the calls so far, by the choice and the number of the call.
        self._texts: dict[int, dict[int, FreeText]] = {}
        self._size = AnswerSize()

    def _matters(self, block: bytes) -> bool:
        return super()._matters(block) or (
            bool(self._texts) and (_CALLS in block or _FINISH in block)
        )

    def _in_chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        choices = [self._choice(choice) for choice in objects(chunk.get("choices"))]
        changed = {**chunk, "choices": choices} if chunk.get("choices") != choices else chunk
        return super()._in_chunk(changed)

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        delta = mapping(choice.get("delta"))
        texts = self._texts.get(choice_number(choice), {})
        fragments = list(objects(delta.get("tool_calls")))
        sent = [self._fragment(each, choice, texts) for each in fragments]
        if choice.get("finish_reason"):
            sent = _with_ends(sent, texts)
        if sent == fragments:
            return choice
        return {**choice, "delta": {**delta, "tool_calls": sent}}

    def _fragment(
        self, fragment: dict[str, Any], choice: dict[str, Any], texts: dict[int, FreeText]
    ) -> dict[str, Any]:
        function, number = mapping(fragment.get("function")), fragment.get("index")
        name = function.get("name")
        if name in self._customs and isinstance(number, int):
            self._texts.setdefault(choice_number(choice), texts)[number] = FreeText(self._size)
        if number not in texts:
            return fragment
        custom = {"input": texts[number].feed(arguments_of(function))}
        if name:
            custom = {"name": self._names.get(name, name), **custom}
        rest = {key: value for key, value in fragment.items() if key != "function"}
        if "type" in rest:
            rest["type"] = "custom"
        return {**rest, "custom": custom}


class WholeCustomStream(CustomChunkStream):
    """Such a stream of which a whole answer is made: the calls are turned back in that."""

    def _rewritten(self, block: bytes) -> bytes:
        return block

    def turned_back(self, value: dict[str, Any]) -> dict[str, Any]:
        """Turn back the calls of the whole answer, and their names."""
        return completion(value, self._names, self._customs)


def _with_ends(sent: list[dict[str, Any]], texts: dict[int, FreeText]) -> list[dict[str, Any]]:
    """Add what is left of the texts at the end of a choice."""
    for number, text in texts.items():
        if not (rest := text.end()):
            continue
        place = next((i for i, each in enumerate(sent) if each.get("index") == number), len(sent))
        last: dict[str, Any] = {"index": number, "custom": {"input": ""}}
        if place < len(sent):
            last = sent[place]
        custom = {**last["custom"], "input": last["custom"]["input"] + rest}
        sent[place : place + 1] = [{**last, "custom": custom}]
    texts.clear()
    return sent


def completion(
    value: dict[str, Any], names: Mapping[str, str], customs: Collection[str] = ()
) -> dict[str, Any]:
    """Turn back the calls of a whole `chat.completion`; the same object if there are none.

    Args:
        names, customs: as for `CustomChunkStream`.
    """
    return _with_names(value, "message", names, customs)


def _with_names(
    value: dict[str, Any], part: str, names: Mapping[str, str], customs: Collection[str] = ()
) -> dict[str, Any]:
    choices = value.get("choices")
    if not isinstance(choices, list):
        return value
    changed = [_choice(choice, part, names, customs) for choice in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return value
    return {**value, "choices": changed}


def _choice(choice: Any, part: str, names: Mapping[str, str], customs: Collection[str]) -> Any:
    message = choice.get(part) if isinstance(choice, dict) else None
    if not isinstance(message, dict) or not isinstance(message.get("tool_calls"), list):
        return choice
    calls = message["tool_calls"]
    changed = [_call(call, names, customs) for call in calls]
    if all(new is old for new, old in zip(changed, calls, strict=True)):
        return choice
    return {**choice, part: {**message, "tool_calls": changed}}


def _call(call: Any, names: Mapping[str, str], customs: Collection[str]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or (name := function.get("name")).__class__ is not str:
        return call
    if name in customs:
        custom = {"name": names.get(name, name), "input": input_of(arguments_of(function))}
        rest = {key: value for key, value in call.items() if key != "function"}
        return {**rest, "type": "custom", "custom": custom}
    if name not in names:
        return call
    return {**call, "function": {**function, "name": names[name]}}
