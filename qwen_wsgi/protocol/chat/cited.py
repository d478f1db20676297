"""Adds the pages of a web search to chat's answers, as OpenAI's annotations.

OpenAI sends all of a stream's annotations in one chunk behind the text. openai-node keeps only the
last delta's, so there is one such delta here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.stream import ChatEncoder
from qwen_wsgi.protocol.json_access import choice_number, items, mapping, objects, text
from qwen_wsgi.protocol.translation.citations import Citation, CitedText, Sources

#: Members of a chunk that a second chunk made of it does not repeat.
_ONCE: Final = frozenset({"choices", "usage", "search_info"})


class _Choice:
    """One choice of an answer while it is read.

    Attributes:
        given: the host itself sends annotations.
        over: its annotations were sent.
    """

    def __init__(self) -> None:
        self._sources = Sources()
        self._text = CitedText(self._sources)
        self._citations: list[Citation] = []
        self.given = False
        self.over = False

    def read(self, holder: Mapping[str, Any], inner: Mapping[str, Any]) -> None:
        """Read a chunk with its delta, or a completion with its message."""
        self._sources.take(holder, inner)
        self.given = self.given or bool(items(inner.get("annotations")))
        if content := text(inner.get("content")):
            self._citations += self._text.feed(content)

    def annotations(self) -> list[dict[str, Any]]:
        """The annotations of the whole text; nothing where the host sends its own.

        Chat has no other place for the pages. So if the text names none of them, all stand at its
        end.
        """
        if self.given:
            return []
        found = self._citations + self._text.end()
        if not found and (length := self._text.length):
            found = [Citation(page, length, length) for page in self._sources.pages.values()]
        return [each.in_chat() for each in found]


class CitingEncoder(ChatEncoder):
    """Encodes a stream of an answer for which the host may search the web."""

    def __init__(self, *, id: str, model: str, created: int) -> None:
        super().__init__(id=id, model=model, created=created)
        self._choices: dict[int, _Choice] = {}

    def feed(self, events: bytes) -> bytes:
        return b"".join(self._event(event) for event in sse.events(events))

    def _event(self, event: bytes) -> bytes:
        chunk = sse.parse(event)
        sent = event + b"\n\n"
        if not isinstance(chunk, dict):
            return sent
        added: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for choice in objects(chunk.get("choices")):
            found = self._found(chunk, choice)
            delta = mapping(choice.get("delta"))
            if found and text(delta.get("content")):
                changed.append({**choice, "delta": {**delta, "annotations": found}})
                continue
            changed.append(choice)
            if found:
                delta = {"annotations": found}
                added.append({**choice, "delta": delta, "finish_reason": None})
        if added:
            before = {name: value for name, value in chunk.items() if name not in _ONCE}
            sent = sse.render({**before, "choices": added}) + sent
        elif changed != chunk.get("choices", []):
            sent = sse.render({**chunk, "choices": changed})
        return sent

    def _found(self, chunk: dict[str, Any], choice: dict[str, Any]) -> list[dict[str, Any]]:
        """Read a choice of a chunk; return the annotations of a text that ends with it."""
        known = self._choices.setdefault(choice_number(choice), _Choice())
        if known.over:
            return []
        known.read(chunk, mapping(choice.get("delta")))
        if not choice.get("finish_reason"):
            return []
        known.over = True
        return known.annotations()


def completion(value: dict[str, Any]) -> dict[str, Any]:
    """Add annotations to a whole `chat.completion`; the same object if there are none."""
    choices = value.get("choices")
    if not isinstance(choices, list):
        return value
    changed = [_with_annotations(value, choice) for choice in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return value
    return {**value, "choices": changed}


def _with_annotations(holder: Mapping[str, Any], choice: Any) -> Any:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return choice
    known = _Choice()
    known.read(holder, message)
    found = known.annotations()
    return {**choice, "message": {**message, "annotations": found}} if found else choice
