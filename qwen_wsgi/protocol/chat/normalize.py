"""Normalizes chunks to OpenAI's form: docs/decisions/011-mending-answers.md.

What hosts were seen to send is in the docstrings. Text is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol.chat.arguments import Arguments
from qwen_wsgi.protocol.chat.tool_calls import (
    MOST_CHOICES,
    NO_ARGUMENTS,
    Taken,
    ToolCalls,
    arguments_of,
    made_up_id,
)

#: OpenAI's list (openai.types.chat.chat_completion_chunk), against which clients check.
FINISHES: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})

#: Other vendors' reasons, from their documents. A truncated answer is `length`.
_OTHER_FINISHES: Final = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "insufficient_system_resource": "length",  # DeepSeek
    "network_error": "length",  # GLM
    "abort": "length",  # vLLM, SGLang
    "tool_use": "tool_calls",
    "sensitive": "content_filter",  # GLM
}

#: Finish reasons of an answer that was cut: its last call may lack arguments.
TRUNCATED: Final = frozenset({"length", "content_filter"})

#: Members of a delta that DashScope fills with null; left out when a delta is rewritten.
_NULLS: Final = ("function_call", "refusal", "role", "tool_calls")


@dataclass(slots=True)
class _Choice:
    """The state of one choice."""

    index: int
    calls: ToolCalls | None = None  #: made with the first: most answers have none
    role_sent: bool = False
    finished: bool = False
    #: A call in OpenAI's form before `tool_calls`: whether it came, and whether it has arguments.
    function: bool = False
    function_empty: bool = True

    def finish(self) -> str:
        """The finish reason where the upstream sends none."""
        return "tool_calls" if self.calls else "function_call" if self.function else "stop"


class ChunkNormalizer:
    """Normalizes the chunks of one stream, in order.

    Args:
        qwen: the upstream is a Qwen host. Of other hosts only tool calls and finishes are changed.

    Attributes:
        indexes: those of the choices so far, as JSON.
        unfinished: how many of them have no finish yet.
        finishes: the last chunk has a finish reason.
        repeatable: the last chunk with another text would be normalized the same way.
        growing: the arguments of which the text of such a chunk is a part, or None.
    """

    def __init__(self, *, qwen: bool = True) -> None:
        self._qwen = qwen
        self._choices: dict[int, _Choice] = {}
        self.unfinished = 0
        self.indexes: set[bytes] = set()
        self.finishes = False
        self.repeatable = False
        self.growing: Arguments | None = None

    def endings(self) -> list[dict[str, Any]]:
        """The finishes that the upstream owes at the end of the stream, each as a choice.

        Without one, agents repeat the turn (opencode) or give up (qwen-code).
        """
        owed = [known for _, known in sorted(self._choices.items()) if not known.finished]
        choices = []
        for known in owed:
            finish = known.finish()
            delta = _completed({}, known)
            choices.append({"index": known.index, "delta": delta, "finish_reason": finish})
            known.finished = True
        self.unfinished = 0
        return choices

    def normalize(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """Normalize a chunk: return itself if nothing changed, None if nothing is left to send.

        Args:
            chunk: its values have their types (`types.typed`).
        """
        choices = chunk["choices"]
        self.finishes, self.growing = False, None
        self.repeatable = bool(choices)
        if not choices:
            return chunk
        kept, changed = [], False
        for choice in choices:
            normalized = self._choice(chunk, choice)
            changed = changed or normalized is not choice
            if normalized is not None:
                kept.append(normalized)
        if not changed:
            return chunk
        return {**chunk, "choices": kept} if kept else None

    def _choice(self, chunk: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any] | None:
        """Normalize one choice; a second finish is dropped (hosts repeat it to send usage)."""
        known = self._known(choice.get("index"))
        delta = choice["delta"]
        normalized = self._delta(delta, known, chunk) if delta else delta
        reason = choice.get("finish_reason")
        finish = None if reason is None else finish_reason(reason, called=bool(known.calls))
        again = finish is not None and known.finished
        lost = normalized is not delta and _lost(delta, normalized)
        if finish is not None:
            self.finishes, self.repeatable = True, False
            if not again:
                known.finished = True
                self.unfinished -= 1
                if finish not in TRUNCATED and (known.calls is not None or known.function):
                    normalized = _completed(normalized, known)
        if again or lost:
            finish = None if again else finish
            if finish is None and not _has_content(normalized):
                return None
        if normalized is delta and finish == reason:
            return choice
        return {**choice, "delta": normalized, "finish_reason": finish}

    def begin(self, index: int) -> _Choice:
        """Begin a choice: with a chunk of it that needs no normalizing, or before one."""
        if len(self._choices) >= MOST_CHOICES:
            raise AnswerTooLarge(f"has more than {MOST_CHOICES} choices")
        known = self._choices[index] = _Choice(index)
        self.unfinished += 1
        self.indexes.add(b"%d" % index)
        return known

    def _known(self, index: Any) -> _Choice:
        index = index if isinstance(index, int) else 0
        known = self._choices.get(index)
        if known is None:
            known = self.begin(index)
        return known

    def _delta(
        self, delta: dict[str, Any], known: _Choice, chunk: Mapping[str, Any]
    ) -> dict[str, Any]:
        normalized = self._renamed(delta, known) if self._qwen else delta
        fragments = delta.get("tool_calls")
        if fragments is not None:
            seed = f"{chunk.get('id')}/{chunk.get('created')}/{known.index}"
            if known.calls is None:
                known.calls = ToolCalls()
            sent = self._fragments(fragments, known.calls, seed)
            if sent != fragments or not sent:
                normalized = {**normalized, "tool_calls": sent or None}
        if (function := delta.get("function_call")) is not None:
            known.function = True
            known.function_empty = known.function_empty and not arguments_of(function).strip()
        if normalized is delta:
            return delta
        return {k: v for k, v in normalized.items() if v is not None or k not in _NULLS}

    def _renamed(self, delta: dict[str, Any], known: _Choice) -> dict[str, Any]:
        """Send the role once, and thinking by one name."""
        normalized = delta
        if delta.get("role"):
            if known.role_sent:
                # openai.lib.streaming concatenates roles, too.
                normalized = {**normalized, "role": None}
            else:
                known.role_sent, self.repeatable = True, False
        if isinstance(delta.get("reasoning"), str) and not delta.get("reasoning_content"):
            # The name of vLLM and OpenRouter; clients of Qwen models read reasoning_content.
            normalized = {k: v for k, v in normalized.items() if k != "reasoning"}
            normalized["reasoning_content"] = delta["reasoning"]
        return normalized

    def _fragments(self, fragments: list[Any], calls: ToolCalls, seed: str) -> list[Any]:
        sent = []
        for fragment in fragments:
            if not isinstance(fragment, dict):
                continue
            taken = calls.take(fragment)
            if taken is not None:
                sent.append(_fragment(fragment, taken, seed))
            if taken is not None and taken.goes_on:
                self.growing = taken.call.arguments
            else:
                self.repeatable = False
        return sent


def _fragment(fragment: Mapping[str, Any], taken: Taken, seed: str) -> dict[str, Any]:
    """Render a fragment as OpenAI does: id, type and name once, the arguments always a string.

    Clients concatenate what they get: a repeated name or id is appended to the first
    (openai.lib.streaming, LangChain), and JavaScript appends the text "null" for a null.
    """
    call = taken.call
    sent: dict[str, Any] = {**fragment, "index": call.number}
    sent.pop("id", None)
    if taken.begins:
        sent["id"] = call.id or made_up_id(seed, call.number)
        sent["type"] = call.type
    elif not sent.get("type"):
        sent.pop("type", None)
    function = sent.pop("function", None)
    if isinstance(function, dict) or taken.begins:
        function = dict(function) if isinstance(function, dict) else {}
        if not taken.names:
            function.pop("name", None)
        function["arguments"] = arguments_of(function)
        sent["function"] = function
    return sent


def _completed(delta: dict[str, Any], known: _Choice) -> dict[str, Any]:
    """Add an empty object to each call of a finished choice that has no arguments."""
    if known.function and known.function_empty:
        function = {**(delta.get("function_call") or {}), "arguments": NO_ARGUMENTS}
        known.function_empty, delta = False, {**delta, "function_call": function}
    empty = known.calls.empty() if known.calls is not None else ()
    if not empty:
        return delta
    # openai.lib.streaming wants at most one fragment of a call in a chunk.
    sent = list(delta.get("tool_calls") or ())
    places = {each["index"]: place for place, each in enumerate(sent)}
    for call in empty:
        call.arguments.add(NO_ARGUMENTS)
        place = places.get(call.number, len(sent))
        old: dict[str, Any] = sent[place] if place < len(sent) else {"index": call.number}
        function = {**(old.get("function") or {}), "arguments": NO_ARGUMENTS}
        sent[place : place + 1] = [{**old, "function": function}]
    return {**delta, "tool_calls": sent}


def finish_reason(reason: Any, *, called: bool) -> str | None:
    """Translate the upstream's finish reason to OpenAI's; None if the answer goes on.

    Some hosts send "" before the end, DashScope's native form sends "null". An unknown word becomes
    `stop`. Agents run tools on `tool_calls` only, but some hosts send `stop` after a call.

    Args:
        called: the answer has tool calls.
    """
    if not isinstance(reason, str) or reason in ("", "null"):
        return None
    finish = reason if reason in FINISHES else _OTHER_FINISHES.get(reason, "stop")
    return "tool_calls" if called and finish in ("stop", "function_call") else finish


def _lost(delta: dict[str, Any], normalized: dict[str, Any]) -> bool:
    """Whether a delta had fragments of tool calls, and all were dropped."""
    return bool(delta.get("tool_calls")) and "tool_calls" not in normalized


def _has_content(delta: dict[str, Any]) -> bool:
    """Whether a delta has any member besides the role."""
    return any(value for name, value in delta.items() if name != "role")
