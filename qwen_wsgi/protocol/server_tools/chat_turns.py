"""Encodes an answer of several turns for a client of chat: it gets the texts, and its own calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.answer_text import AnswerSize, Text
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.chat import ChatEncoder, ChatRequest
from qwen_wsgi.protocol.chat.normalize import TRUNCATED, finish_reason
from qwen_wsgi.protocol.chat.tool_calls import WholeCalls
from qwen_wsgi.protocol.encoder import Outcome, ServerCall
from qwen_wsgi.protocol.json_access import mapping, objects, text
from qwen_wsgi.protocol.server_tools import next_turn
from qwen_wsgi.protocol.server_tools.chat_tools import ChatTools
from qwen_wsgi.protocol.server_tools.offer import PYTHON, OfferedTool
from qwen_wsgi.protocol.server_tools.results import (
    RUNNER,
    ToolWork,
    for_model,
    limit_text,
    told_of,
)
from qwen_wsgi.protocol.usage import Usage, total
from qwen_wsgi.protocol.usage import parse as parse_usage

#: Characters of a result that is told in the text, where the client runs a function of its own.
_MOST_TOLD: Final = 4000


class ChatTurnsEncoder(ChatEncoder):
    """Encodes several turns as one answer of chat.

    Texts are passed on as they come. Calls are held until the end of their turn: those of the
    operator's tools are carried out, those of the client's functions go to the client, and end the
    answer. The client does not know the others, so what they have told is then a part of the text,
    which comes back with the next request.

    Args:
        id, model, created: of the chunks, the same in all turns.
    """

    tells_failures = False

    def __init__(self, tools: ChatTools, *, id: str, model: str, created: int) -> None:
        super().__init__(id=id, model=model, created=created)
        self._tools = tools
        self._size = AnswerSize()
        self._seed = id
        #: The whole text and thinking, and those of this turn.
        self._content, self._thoughts = Text(self._size), Text(self._size)
        self._said, self._thought = Text(self._size), Text(self._size)
        self._calls = WholeCalls(self._size)
        self._finish: str | None = None
        self._usage: Usage | None = None
        self._spent: list[Usage | None] = []
        self._turns = 0
        #: Of the ended turn: its calls of the operator's tools, the client's, and the results.
        self._own: list[tuple[OfferedTool, dict[str, Any]]] = []
        self._others: list[dict[str, Any]] = []
        self._results: dict[int, str] = {}
        self._messages: list[dict[str, Any]] = []

    def feed(self, events: bytes) -> bytes:
        """Encode the texts of some chunks."""
        return b"".join(self._event(event) for event in sse.events(events))

    def _event(self, event: bytes) -> bytes:
        chunk = sse.parse(event)
        if not isinstance(chunk, dict):
            return b""
        self._usage = parse_usage(chunk.get("usage")) or self._usage
        sent = b""
        for choice in objects(chunk.get("choices")):
            delta = mapping(choice.get("delta"))
            for fragment in objects(delta.get("tool_calls")):
                self._calls.take(fragment)
            called = bool(self._calls)
            self._finish = self._finish or finish_reason(choice.get("finish_reason"), called=called)
            kept = self._delta(delta)
            if kept:
                sent += self._chunk({**kept}, None, choice.get("logprobs"))
        return sent

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        """What the client gets of a delta."""
        kept: dict[str, Any] = {}
        if "role" in delta and not (self._turns or self._content or self._thoughts):
            kept["role"] = "assistant"
        if piece := text(delta.get("content")) or text(delta.get("refusal")):
            if self._content and not self._said:
                self._content.add("\n\n")
                kept["content"] = "\n\n" + piece
            else:
                kept["content"] = piece
            self._content.add(piece)
            self._said.add(piece)
        if thought := text(delta.get("reasoning_content")) or text(delta.get("reasoning")):
            kept["reasoning_content"] = thought
            self._thoughts.add(thought)
            self._thought.add(thought)
        return kept

    def _chunk(self, delta: dict[str, Any], finish: str | None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse.render({**self._head, "choices": [choice]})

    # --- turns ------------------------------------------------------------------------------------

    def end_turn(self) -> bytes:
        """Sort the calls of the turn."""
        self._turns += 1
        cut = self._finish in TRUNCATED
        self._own, self._others, self._results = [], [], {}
        for call in self._calls.render(f"{self._seed}/{self._turns}", truncated=cut):
            tool = self._tools.functions.tool_of(call["function"]["name"])
            if tool is None:
                self._others.append(call)
            elif not cut:
                self._own.append((tool, call))
        self._calls = WholeCalls(self._size)
        self._spent.append(self._usage)
        self._usage = None
        return b""

    def waiting(self) -> Sequence[ServerCall]:
        """The calls of the turn that the proxy is to carry out."""
        return [
            ServerCall(RUNNER, number, partial(self._work_of, tool, call))
            for number, (tool, call) in enumerate(self._own)
        ]

    def _work_of(self, tool: OfferedTool, call: dict[str, Any]) -> ToolWork:
        container = self._seed if tool.server == PYTHON else None
        return ToolWork(tool, call["function"]["arguments"], container)

    def begin_call(self, call: ServerCall) -> bytes:
        """A comment, which clients pass over."""
        tool, _ = self._own[call.number]
        return b": tool %b\n\n" % header_token(f"{tool.server}.{tool.name}").encode()

    def end_call(self, call: ServerCall, outcome: Outcome) -> bytes:
        """Keep the result; where the answer ends with the client's calls, tell it in the text."""
        told = for_model(told_of(outcome))
        self._size.add_text(told)
        self._results[call.number] = told
        if not self._others:
            return b""
        tool, _ = self._own[call.number]
        cut = told if len(told) <= _MOST_TOLD else told[:_MOST_TOLD] + " … (cut)"
        return self._say(f"[{tool.server}.{tool.name}: {cut}]")

    def _say(self, words: str) -> bytes:
        """Add words of ours to the text."""
        words = ("\n\n" if self._content else "") + words
        self._content.add(words)
        return self._chunk({"content": words}, None)

    def stop(self, error: ApiError) -> bytes:
        """Encode that no more tools run."""
        self._finish = "length"
        return self._say(limit_text(error).lstrip())

    def next_turn(self, *, last: bool) -> ChatRequest | None:
        """The next turn's request. None if no tool has run, the answer was cut, or the client has
        to run functions of its own first."""
        if not self._own or self._others:
            return None
        calls = [call for _, call in self._own]
        message = {"role": "assistant", "content": str(self._said), "tool_calls": calls}
        if self._thought:
            message["reasoning_content"] = str(self._thought)
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": self._results[number]}
            for number, call in enumerate(calls)
        ]
        self._messages += [message, *results]
        self._said, self._thought = Text(self._size), Text(self._size)
        self._finish = None
        own = self._tools.functions.names()
        return next_turn.next_request(
            self._tools.chat, self._messages, own, last=last, tools=self._tools.tools
        )

    def approved(self) -> Sequence[ServerCall]:
        """None: clients of chat are not asked."""
        return ()

    def resume(self, outcomes: Sequence[Outcome]) -> ChatRequest:
        """The first request as it is."""
        return self._tools.chat

    # --- the end ----------------------------------------------------------------------------------

    def end(self) -> bytes:
        """Encode the client's calls, why the answer ended, and the usage."""
        sent = b""
        if self._others:
            numbered = [{"index": index, **call} for index, call in enumerate(self._others)]
            sent = self._chunk({"tool_calls": numbered}, None)
        sent += self._chunk({}, self._reason())
        if self._tools.wants_usage:
            sent += sse.render({**self._head, "choices": [], "usage": self._used()})
        return sent + sse.DONE

    def completion(self) -> dict[str, Any]:
        """The whole answer, after the end."""
        content = str(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self._others else ""),
            "refusal": None,
        }
        if self._thoughts:
            message["reasoning_content"] = str(self._thoughts)
        if self._others:
            message["tool_calls"] = self._others
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._reason(),
        }
        head = {**self._head, "object": "chat.completion"}
        used = self._used()
        return {**head, "choices": [choice], **({"usage": used} if used else {})}

    def _reason(self) -> str:
        if self._others and self._finish not in TRUNCATED:
            return "tool_calls"
        return self._finish if self._finish in TRUNCATED else "stop"

    def _used(self) -> dict[str, Any] | None:
        usage = total(self._spent)
        if usage is None:
            return None
        counts: dict[str, Any] = {
            "prompt_tokens": usage.prompt or 0,
            "completion_tokens": usage.completion or 0,
            "total_tokens": usage.total or (usage.prompt or 0) + (usage.completion or 0),
        }
        if usage.cached is not None:
            counts["prompt_tokens_details"] = {"cached_tokens": usage.cached}
        if usage.reasoning is not None:
            counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
        return counts
