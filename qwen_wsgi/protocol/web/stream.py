"""The events of the web API as a stream of chat chunks: phases become thoughts and answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat import ChunkStream
from qwen_wsgi.protocol.json_access import integer, mapping, objects, text
from qwen_wsgi.protocol.web.errors import Reported, reported_by

#: Phases whose text is the answer; every other one tells how it was found.
_ANSWER: Final = frozenset({"", "answer", "image_gen"})
_FINISHES: Final = frozenset({"stop", "length", "content_filter"})
_MOST_PAGES: Final = 100


class WebChunkStream(ChunkStream):
    """Reads events of the web API, and returns chat chunks.

    It ends with a finish in the phase of the answer (a phase of thoughts may have one, too), with a
    finish reason, or with `[DONE]`. The web API does not always send one: a stream whose pieces
    have no status ends where it ends in good order behind text of the answer. Pieces that say
    `typing` promise a `finished`: without that the answer was cut. An end without any text is none.

    Args:
        id, model, created: of the chunks.

    Attributes:
        reported: the failure that an event reported.
    """

    def __init__(self, *, id: str, model: str, created: int, hide_usage: bool) -> None:
        super().__init__(hide_usage=hide_usage, normalize=False)
        self._head = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._begun = self._spoken = self._typing = self._ended = self._paged = False
        self._tokens: dict[str, Any] = {}
        self.reported: Reported | None = None

    def feed(self, block: bytes) -> bytes:
        """Take a block of whole events; return what the client gets of it."""
        made = b"".join(self._made(block))
        sent = super().feed(made) if made else b""
        if self.reported is not None:
            # Behind what came before it in the same read, which `feed` would not take any more.
            self.failed, self.error = True, self.reported.message
        self.received = block.count(b"\n\n")  # of the upstream's own
        return sent

    def end(self) -> bytes:
        """Return what the client must still get at the end."""
        if self._ended or self.failed or not self._spoken or self._typing:
            return super().end()
        return super().feed(b"".join(self._finish("stop")))

    def _made(self, block: bytes) -> Iterator[bytes]:
        for event in sse.events(block):
            if self._ended or self.reported is not None:
                return
            if sse.is_done(event):
                yield from self._finish("stop")
                return
            value = sse.parse(event)
            if not isinstance(value, dict):
                continue
            if (reported := reported_by(value)) is not None:
                self.reported = reported
                return
            if isinstance(value.get("usage"), dict):
                self._tokens = value["usage"]
            for choice in objects(value.get("choices")):
                yield from self._of_choice(choice)
                break  # there is one

    def _of_choice(self, choice: dict[str, Any]) -> Iterator[bytes]:
        delta = mapping(choice.get("delta"))
        phase, said = text(delta.get("phase")), text(delta.get("content"))
        pages = _pages(delta)
        if pages and not self._paged:
            self._paged = True
            yield self._chunk({"search_info": {"search_results": pages}})
        if phase in _ANSWER and delta.get("status"):
            self._typing = True
        if said and phase in _ANSWER:
            self._spoken = True
            yield self._chunk({"content": said})
        elif said and phase != "web_search":
            yield self._chunk({"reasoning_content": said})
        reason = text(choice.get("finish_reason"))
        if reason or (delta.get("status") == "finished" and phase in _ANSWER):
            yield from self._finish(reason if reason in _FINISHES else "stop")

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return sse.render({**self._head, "choices": [choice]})

    def _finish(self, reason: str) -> Iterator[bytes]:
        """The end. An answer without a word is none, which `[DONE]` alone says."""
        self._ended = True
        if self._begun:
            yield self._chunk({}, reason)
            if usage := _usage(self._tokens):
                yield sse.render({**self._head, "choices": [], "usage": usage})
        yield sse.DONE


def _pages(delta: dict[str, Any]) -> list[dict[str, Any]]:
    """The pages that a search found, in DashScope's form, which the dialects know."""
    found = mapping(delta.get("extra")).get("web_search_info")
    pages: list[dict[str, Any]] = []
    for each in objects(found if isinstance(found, list) else []):
        if url := text(each.get("url")):
            page = {"index": len(pages) + 1, "title": text(each.get("title")) or url, "url": url}
            pages.append(page)
    return pages[:_MOST_PAGES]


def _usage(told: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's usage; {} where the host told no numbers."""
    prompt = _count(told, "prompt_tokens", "input_tokens")
    answer = _count(told, "completion_tokens", "output_tokens")
    if prompt is None or answer is None:
        return {}
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }
    details = told.get("completion_tokens_details") or told.get("output_tokens_details")
    thoughts = integer(mapping(details).get("reasoning_tokens"))
    if thoughts is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return usage


def _count(told: dict[str, Any], *names: str) -> int | None:
    return next((n for name in names if (n := integer(told.get(name))) is not None), None)
