"""The output items of a response while they grow; each renders its own events."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol.answer_text import ITEM_BYTES, AnswerSize, Text
from qwen_wsgi.protocol.encoder import Outcome
from qwen_wsgi.protocol.responses import compaction, content
from qwen_wsgi.protocol.responses.events import Deltas, Events
from qwen_wsgi.protocol.responses.tools import Tool
from qwen_wsgi.protocol.translation.citations import Citation, CitedText, Sources
from qwen_wsgi.protocol.translation.free_text import FreeText

COMPLETED = "completed"
IN_PROGRESS = "in_progress"
INCOMPLETE = "incomplete"

#: What an item takes in memory besides its text, also rendered.
_ITEM_BYTES: Final = 2 * ITEM_BYTES


class Item:
    """One output item.

    Args:
        size: the item and what it keeps count against it.

    Attributes:
        index: its position in the output.
    """

    def __init__(self, events: Events, size: AnswerSize, id: str, index: int) -> None:
        size.add(_ITEM_BYTES)
        self._events = events
        self._size = size
        self._id = id
        self.index = index
        self._done: dict[str, Any] | None = None

    @property
    def _places(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self.index}

    def begin(self) -> bytes:
        """Render the event that adds the item."""
        return self._events.render(
            "response.output_item.added", output_index=self.index, item=self._render(IN_PROGRESS)
        )

    def finish(self, status: str) -> bytes:
        """Render the events of the item's end; called once."""
        events = self._last(status)
        self._done = self._render(status)
        return events + self._events.render(
            "response.output_item.done", output_index=self.index, item=self._done
        )

    def object(self) -> dict[str, Any]:
        """The item for the response object; incomplete if it was not finished."""
        return self._render(INCOMPLETE) if self._done is None else self._done

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._done is not None

    def _last(self, status: str) -> bytes:
        """Render the events of the end that come before the whole item."""
        raise NotImplementedError

    def _render(self, status: str) -> dict[str, Any]:
        raise NotImplementedError


class TextItem(Item):
    """An item that grows by pieces of text."""

    def __init__(self, events: Events, size: AnswerSize, id: str, index: int) -> None:
        super().__init__(events, size, id, index)
        self._text = Text(size)
        self._deltas = Deltas(events, "", {})

    def more(self, piece: str, as_json: bytes) -> bytes:
        """Add to the same text as the last call did.

        Args:
            as_json: the piece as the inside of a JSON string.
        """
        self._text.add(piece)
        return self._deltas.render_json(as_json)


class Reasoning(TextItem):
    """Thinking, sent as a summary of one part, which is what clients show.

    Args:
        packed: add the packed thinking, for a client that keeps it (`content.pack_thinking`).
    """

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, packed: bool
    ) -> None:
        super().__init__(events, size, id, index)
        self._packed = packed

    def add(self, piece: str) -> bytes:
        """Add to the thinking."""
        begun = b""
        if not self._text:
            places = {**self._places, "summary_index": 0}
            begun = self._part("added", "")
            self._deltas = Deltas(self._events, "response.reasoning_summary_text.delta", places)
        self._text.add(piece)
        return begun + self._deltas.render(piece)

    def _part(self, what: str, text: str) -> bytes:
        return self._events.render(
            f"response.reasoning_summary_part.{what}",
            **self._places,
            summary_index=0,
            part={"type": "summary_text", "text": text},
        )

    def _last(self, status: str) -> bytes:
        text = str(self._text)
        events = self._events.render(
            "response.reasoning_summary_text.done", **self._places, summary_index=0, text=text
        )
        return events + self._part("done", text)

    def _render(self, status: str) -> dict[str, Any]:
        text = str(self._text)
        summary = [{"type": "summary_text", "text": text}] if text else []
        shown = {"id": self._id, "type": "reasoning", "summary": summary, "status": status}
        if self._packed and status != IN_PROGRESS:
            shown["encrypted_content"] = content.pack_thinking(text)
        return shown


class Message(TextItem):
    """The model's message: parts of text and of refusal, one after the other.

    Args:
        sources: the pages that the host's search finds, at which the text may point; None if it did
            not search.
    """

    def __init__(
        self,
        events: Events,
        size: AnswerSize,
        id: str,
        index: int,
        *,
        sources: Sources | None = None,
    ) -> None:
        super().__init__(events, size, id, index)
        self._parts: list[dict[str, Any]] = []
        self._kind = ""
        self._sources = sources
        #: Finds the citations in the open part; None if there can be none.
        self._cited: CitedText | None = None

    def add_text(self, piece: str, logprobs: list[dict[str, Any]]) -> bytes:
        """Add to the text."""
        begun = self._open("output_text")
        self._text.add(piece)
        if not logprobs:
            delta = self._deltas.render(piece)
        else:
            self._size.add_objects(logprobs)
            self._parts[-1]["logprobs"] += logprobs
            delta = self._events.render(
                "response.output_text.delta", **self._places, delta=piece, logprobs=logprobs
            )
        if self._cited is None:
            return begun + delta
        return begun + delta + self._annotated(self._cited.feed(piece))

    def add_refusal(self, piece: str) -> bytes:
        """Add to a refusal."""
        begun = self._open("refusal")
        self._text.add(piece)
        return begun + self._deltas.render(piece)

    def add_citation(self, citation: Citation) -> bytes:
        """Add a source that the host itself named, unless marks in the text named sources."""
        begun = self._open("output_text")
        if self._cited is not None and self._cited.found:
            return begun
        return begun + self._annotated([citation])

    def _annotated(self, citations: list[Citation]) -> bytes:
        annotations = self._parts[-1]["annotations"]
        events = []
        for citation in citations:
            annotation = citation.in_response()
            self._size.add_objects(annotation)
            annotations.append(annotation)
            events.append(
                self._events.render(
                    "response.output_text.annotation.added",
                    **self._places,
                    annotation_index=len(annotations) - 1,
                    annotation=annotation,
                )
            )
        return b"".join(events)

    @property
    def _places(self) -> dict[str, Any]:
        return {**super()._places, "content_index": len(self._parts) - 1}

    def _open(self, kind: str) -> bytes:
        """Begin a part of this kind unless the last one is of it."""
        if kind == self._kind:
            return b""
        events = self._close()
        self._size.add(ITEM_BYTES)
        self._kind = kind
        if kind == "refusal":
            self._parts.append({"type": "refusal", "refusal": ""})
            self._deltas = Deltas(self._events, "response.refusal.delta", self._places)
        else:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._parts.append(part)
            if self._sources is not None:
                self._cited = CitedText(self._sources)
            self._deltas = Deltas(
                self._events, "response.output_text.delta", self._places, ',"logprobs":[]'
            )
        return events + self._part("added")

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        part = self._update()
        if self._kind == "refusal":
            events = self._events.render(
                "response.refusal.done", **self._places, refusal=part["refusal"]
            )
        else:
            events = b"" if self._cited is None else self._annotated(self._cited.end())
            self._cited = None
            events += self._events.render(
                "response.output_text.done",
                **self._places,
                text=part["text"],
                logprobs=part["logprobs"],
            )
        self._text.clear()
        self._kind = ""
        return events + self._part("done")

    def _part(self, what: str) -> bytes:
        return self._events.render(
            f"response.content_part.{what}", **self._places, part=self._parts[-1]
        )

    def _update(self) -> dict[str, Any]:
        """Set the text of the open part to what was added so far; return the part."""
        part = self._parts[-1]
        part["refusal" if self._kind == "refusal" else "text"] = str(self._text)
        return part

    def _last(self, status: str) -> bytes:
        return self._close()

    def _render(self, status: str) -> dict[str, Any]:
        if self._kind:
            self._update()
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": list(self._parts),
        }


class CitingMessage(Message):
    """A message for which the host may search the web; the others do not look at each piece."""

    def more(self, piece: str, as_json: bytes) -> bytes:
        delta = super().more(piece, as_json)
        return delta if self._cited is None else delta + self._annotated(self._cited.feed(piece))


class Compaction(Item):
    """A summary of the conversation, which the client sends back instead of it; without deltas."""

    def __init__(self, events: Events, size: AnswerSize, id: str, index: int) -> None:
        super().__init__(events, size, id, index)
        self._text = Text(size)

    def add(self, piece: str) -> None:
        """Add to the summary."""
        self._text.add(piece)

    def _last(self, status: str) -> bytes:
        return b""

    def _render(self, status: str) -> dict[str, Any]:
        packed = compaction.packed(str(self._text))
        return {"id": self._id, "type": "compaction", "encrypted_content": packed}


class Call(Item):
    """A call of a function."""

    _EVENT = "response.function_call_arguments"

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, call_id: str, tool: Tool
    ) -> None:
        super().__init__(events, size, id, index)
        self._call_id, self._tool = call_id, tool
        self._text = Text(size)
        self._deltas = Deltas(events, f"{self._EVENT}.delta", self._places)

    def grow(self, arguments: str) -> bytes:
        """Add to the arguments."""
        return self._add(arguments)

    def _add(self, piece: str) -> bytes:
        if not piece:
            return b""
        self._text.add(piece)
        return self._deltas.render(piece)

    def _last(self, status: str) -> bytes:
        # Clients parse the arguments; OpenAI's models write an empty object if there are none.
        events = b"" if self._text or status != COMPLETED else self._add("{}")
        return events + self._events.render(
            f"{self._EVENT}.done",
            **self._places,
            name=self._tool.name,
            arguments=str(self._text),
        )

    def _render(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "arguments": str(self._text),
            **self._name(),
        }

    def _name(self) -> dict[str, Any]:
        named = {"call_id": self._call_id, "name": self._tool.name}
        if self._tool.namespace:
            named["namespace"] = self._tool.namespace
        return named


class ProxyCall(Item):
    """A call of a tool that the proxy runs; it stays open until the tool has run.

    Attributes:
        is_run: false if the client must be asked first.
    """

    is_run = True

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, call_id: str, tool: Tool
    ) -> None:
        super().__init__(events, size, id, index)
        self.tool = tool
        self._arguments = Text(size)

    def grow(self, arguments: str) -> bytes:
        """Add to the arguments."""
        raise NotImplementedError

    def running(self) -> bytes:
        """Render that the tool runs now."""
        raise NotImplementedError

    def settle(self, outcome: Outcome) -> bytes:
        """Render how the call ended."""
        raise NotImplementedError


class CustomCall(Call):
    """A call of a tool that takes a plain text."""

    _EVENT = "response.custom_tool_call_input"

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, call_id: str, tool: Tool
    ) -> None:
        super().__init__(events, size, id, index, call_id=call_id, tool=tool)
        self._input = FreeText(size)

    def grow(self, arguments: str) -> bytes:
        return self._add(self._input.feed(arguments))

    def _last(self, status: str) -> bytes:
        events = self._add(self._input.end())
        return events + self._events.render(
            f"{self._EVENT}.done", **self._places, input=str(self._text)
        )

    def _render(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "input": str(self._text),
            **self._name(),
        }


class Search(Item):
    """A web search by the host; only its results are known.

    Args:
        urls: the results, if the client requested them.
    """

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, urls: list[str]
    ) -> None:
        super().__init__(events, size, id, index)
        size.add_objects(urls)
        self._urls = urls

    def _last(self, status: str) -> bytes:
        return b"".join(
            self._events.render(f"response.web_search_call.{step}", **self._places)
            for step in ("in_progress", "searching", "completed")
        )

    def _render(self, status: str) -> dict[str, Any]:
        action: dict[str, Any] = {"type": "search", "query": ""}
        if self._urls:
            action["sources"] = [{"type": "url", "url": url} for url in self._urls]
        return {"id": self._id, "type": "web_search_call", "status": status, "action": action}
