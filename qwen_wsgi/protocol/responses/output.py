"""The items of a response while they grow, each telling its own events."""

from __future__ import annotations

from typing import Any

from qwen_wsgi.protocol.chat.completion import joined_text
from qwen_wsgi.protocol.responses import sealed_reasoning
from qwen_wsgi.protocol.responses.events import Deltas, Events
from qwen_wsgi.protocol.responses.free_text import FreeText
from qwen_wsgi.protocol.responses.tools import Tool

COMPLETED = "completed"
IN_PROGRESS = "in_progress"
INCOMPLETE = "incomplete"


class Item:
    """One item of the output.

    Attributes:
        index: its place in the output.
    """

    def __init__(self, events: Events, id: str, index: int) -> None:
        self._events = events
        self._id = id
        self.index = index
        self._done: dict[str, Any] | None = None

    @property
    def _places(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self.index}

    def begin(self) -> bytes:
        """Tell that there is such an item."""
        return self._events.render(
            "response.output_item.added", output_index=self.index, item=self._shown(IN_PROGRESS)
        )

    def finish(self, status: str) -> bytes:
        """Tell the whole item, once."""
        told = self._last(status)
        self._done = self._shown(status)
        return told + self._events.render(
            "response.output_item.done", output_index=self.index, item=self._done
        )

    def object(self) -> dict[str, Any]:
        """The item as a response object has it; incomplete if it was not finished."""
        return self._shown(INCOMPLETE) if self._done is None else self._done

    @property
    def finished(self) -> bool:
        """Whether the whole item was told."""
        return self._done is not None

    def _last(self, status: str) -> bytes:
        """The events of its end that come before the whole item."""
        raise NotImplementedError

    def _shown(self, status: str) -> dict[str, Any]:
        raise NotImplementedError


class Spoken(Item):
    """An item that grows by pieces of text."""

    def __init__(self, events: Events, id: str, index: int) -> None:
        super().__init__(events, id, index)
        self._pieces: list[str] = []
        self._deltas = Deltas(events, "", {})

    def more(self, piece: str, as_json: bytes) -> bytes:
        """Add to the text that was added to last.

        Args:
            as_json: the piece as it stands in JSON, without its quotes.
        """
        self._pieces.append(piece)
        return self._deltas.render_json(as_json)


class Reasoning(Spoken):
    """Thinking, told as a summary of one part: that is what clients show, and where they take it.

    Args:
        seals: pack it for a client that carries it for us (`envelope`).
    """

    def __init__(self, events: Events, id: str, index: int, *, seals: bool) -> None:
        super().__init__(events, id, index)
        self._seals = seals

    def think(self, piece: str) -> bytes:
        """Add to the thinking."""
        begun = b""
        if not self._pieces:
            places = {**self._places, "summary_index": 0}
            begun = self._part("added", "")
            self._deltas = Deltas(self._events, "response.reasoning_summary_text.delta", places)
        self._pieces.append(piece)
        return begun + self._deltas.render(piece)

    def _part(self, what: str, text: str) -> bytes:
        return self._events.render(
            f"response.reasoning_summary_part.{what}",
            **self._places,
            summary_index=0,
            part={"type": "summary_text", "text": text},
        )

    def _last(self, status: str) -> bytes:
        text = joined_text(self._pieces)
        told = self._events.render(
            "response.reasoning_summary_text.done", **self._places, summary_index=0, text=text
        )
        return told + self._part("done", text)

    def _shown(self, status: str) -> dict[str, Any]:
        text = joined_text(self._pieces)
        summary = [{"type": "summary_text", "text": text}] if text else []
        shown = {"id": self._id, "type": "reasoning", "summary": summary, "status": status}
        if self._seals and status != IN_PROGRESS:
            shown["encrypted_content"] = sealed_reasoning.sealed(text)
        return shown


class Message(Spoken):
    """What the model says: parts of text and of refusal, one after the other."""

    def __init__(self, events: Events, id: str, index: int) -> None:
        super().__init__(events, id, index)
        self._parts: list[dict[str, Any]] = []
        self._kind = ""

    def say(self, piece: str, logprobs: list[dict[str, Any]]) -> bytes:
        """Add to the text."""
        begun = self._open("output_text")
        self._pieces.append(piece)
        if not logprobs:
            return begun + self._deltas.render(piece)
        self._parts[-1]["logprobs"] += logprobs
        return begun + self._events.render(
            "response.output_text.delta", **self._places, delta=piece, logprobs=logprobs
        )

    def refuse(self, piece: str) -> bytes:
        """Add to a refusal."""
        begun = self._open("refusal")
        self._pieces.append(piece)
        return begun + self._deltas.render(piece)

    def annotate(self, annotation: dict[str, Any]) -> bytes:
        """Add a source to the text."""
        begun = self._open("output_text")
        annotations = self._parts[-1]["annotations"]
        annotations.append(annotation)
        return begun + self._events.render(
            "response.output_text.annotation.added",
            **self._places,
            annotation_index=len(annotations) - 1,
            annotation=annotation,
        )

    @property
    def _places(self) -> dict[str, Any]:
        return {**super()._places, "content_index": len(self._parts) - 1}

    def _open(self, kind: str) -> bytes:
        """Begin a part of this kind, if the last one is of the other."""
        if kind == self._kind:
            return b""
        told = self._close()
        self._kind = kind
        if kind == "refusal":
            self._parts.append({"type": "refusal", "refusal": ""})
            self._deltas = Deltas(self._events, "response.refusal.delta", self._places)
        else:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._parts.append(part)
            self._deltas = Deltas(
                self._events, "response.output_text.delta", self._places, ',"logprobs":[]'
            )
        return told + self._part("added")

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        part = self._settle()
        if self._kind == "refusal":
            told = self._events.render(
                "response.refusal.done", **self._places, refusal=part["refusal"]
            )
        else:
            told = self._events.render(
                "response.output_text.done",
                **self._places,
                text=part["text"],
                logprobs=part["logprobs"],
            )
        self._pieces, self._kind = [], ""
        return told + self._part("done")

    def _part(self, what: str) -> bytes:
        return self._events.render(
            f"response.content_part.{what}", **self._places, part=self._parts[-1]
        )

    def _settle(self) -> dict[str, Any]:
        """The part that grows, with its text so far."""
        part = self._parts[-1]
        part["refusal" if self._kind == "refusal" else "text"] = joined_text(self._pieces)
        return part

    def _last(self, status: str) -> bytes:
        return self._close()

    def _shown(self, status: str) -> dict[str, Any]:
        if self._kind:
            self._settle()
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": list(self._parts),
        }


class Call(Item):
    """A call of a function."""

    _EVENT = "response.function_call_arguments"

    def __init__(self, events: Events, id: str, index: int, *, call_id: str, tool: Tool) -> None:
        super().__init__(events, id, index)
        self._call_id, self._tool = call_id, tool
        self._pieces: list[str] = []
        self._deltas = Deltas(events, f"{self._EVENT}.delta", self._places)

    def grow(self, arguments: str) -> bytes:
        """Add to the arguments."""
        return self._tell(arguments)

    def _tell(self, piece: str) -> bytes:
        if not piece:
            return b""
        self._pieces.append(piece)
        return self._deltas.render(piece)

    def _last(self, status: str) -> bytes:
        # Clients parse the arguments; OpenAI's models write an empty object where there are none.
        told = b"" if self._pieces or status != COMPLETED else self._tell("{}")
        return told + self._events.render(
            f"{self._EVENT}.done",
            **self._places,
            name=self._tool.name,
            arguments=joined_text(self._pieces),
        )

    def _shown(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "arguments": joined_text(self._pieces),
            **self._name(),
        }

    def _name(self) -> dict[str, Any]:
        named = {"call_id": self._call_id, "name": self._tool.name}
        if self._tool.namespace:
            named["namespace"] = self._tool.namespace
        return named


class CustomCall(Call):
    """A call of a tool that takes a free text."""

    _EVENT = "response.custom_tool_call_input"

    def __init__(self, events: Events, id: str, index: int, *, call_id: str, tool: Tool) -> None:
        super().__init__(events, id, index, call_id=call_id, tool=tool)
        self._input = FreeText()

    def grow(self, arguments: str) -> bytes:
        return self._tell(self._input.feed(arguments))

    def _last(self, status: str) -> bytes:
        told = self._tell(self._input.end())
        return told + self._events.render(
            f"{self._EVENT}.done", **self._places, input=joined_text(self._pieces)
        )

    def _shown(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "input": joined_text(self._pieces),
            **self._name(),
        }


class Search(Item):
    """A search of the web that the host did by itself; of it only what was found is known.

    Args:
        urls: the pages, if the client wants to know.
    """

    def __init__(self, events: Events, id: str, index: int, *, urls: list[str]) -> None:
        super().__init__(events, id, index)
        self._urls = urls

    def _last(self, status: str) -> bytes:
        return b"".join(
            self._events.render(f"response.web_search_call.{step}", **self._places)
            for step in ("in_progress", "searching", "completed")
        )

    def _shown(self, status: str) -> dict[str, Any]:
        action: dict[str, Any] = {"type": "search", "query": ""}
        if self._urls:
            action["sources"] = [{"type": "url", "url": url} for url in self._urls]
        return {"id": self._id, "type": "web_search_call", "status": status, "action": action}
