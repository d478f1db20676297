"""Chunks of Qwen's hosts, set right for OpenAI's clients: docs/decisions/011-mending-answers.md.

What was seen, and where, is in the docstrings; text is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.protocol.chat.tool_calls import Taken, ToolCalls, arguments_of, made_up_id

#: OpenAI's whole list (openai.types.chat.chat_completion_chunk); clients check against it.
_FINISHES: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})

#: Others, by their vendors' documents. What was cut off is `length`: an answer that is not whole.
_MEANINGS: Final = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "insufficient_system_resource": "length",  # DeepSeek
    "network_error": "length",  # GLM
    "abort": "length",  # vLLM, SGLang
    "tool_use": "tool_calls",
    "sensitive": "content_filter",  # GLM
}

#: Members of a delta that DashScope fills with null. They are left out where a delta is rewritten.
_NULLS: Final = ("function_call", "refusal", "role", "tool_calls")


@dataclass(slots=True)
class _Choice:
    """What is known of one choice."""

    index: int
    calls: ToolCalls = field(default_factory=ToolCalls)
    role_told: bool = False
    finished: bool = False


class ChunkNormalizer:
    """Sets the chunks of one stream right, in order.

    Attributes:
        repeatable: the last chunk, with another text in its place, would be mended the same way.
        growing: where the text of such a chunk belongs if it is a part of a tool call's arguments.
    """

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self.repeatable = False
        self.growing: list[str | bytes] | None = None

    def mend(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """The chunk as a client expects it: itself if nothing is wrong, None if nothing is left."""
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            self.repeatable = False
            return chunk
        self.repeatable, self.growing = True, None
        kept, changed = [], False
        for choice in choices:
            mended = self._choice(chunk, choice) if isinstance(choice, dict) else choice
            changed = changed or mended is not choice
            if mended is not None:
                kept.append(mended)
        if not changed:
            return chunk
        return {**chunk, "choices": kept} if kept else None

    def _choice(self, chunk: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any] | None:
        """One finish for each choice: what a second one has to tell is the usage beside it."""
        known = self._known(choice.get("index"))
        delta = choice.get("delta")
        mended = self._delta(delta, known, chunk) if isinstance(delta, dict) else delta
        told = choice.get("finish_reason")
        finish = finish_reason(told, called=bool(known.calls))
        again = finish is not None and known.finished
        if finish is not None:
            self.repeatable, known.finished = False, True
        if again or _lost(delta, mended):
            finish = None if again else finish
            if finish is None and not _says(mended):
                return None
        if mended is delta and finish == told:
            return choice
        return {**choice, "delta": mended, "finish_reason": finish}

    def _known(self, index: Any) -> _Choice:
        index = index if isinstance(index, int) else 0
        known = self._choices.get(index)
        if known is None:
            known = self._choices[index] = _Choice(index)
        return known

    def _delta(
        self, delta: dict[str, Any], known: _Choice, chunk: Mapping[str, Any]
    ) -> dict[str, Any]:
        mended = delta
        if delta.get("role"):
            if known.role_told:
                mended = {**mended, "role": None}  # openai.lib.streaming adds up roles, too
            else:
                known.role_told, self.repeatable = True, False
        if isinstance(delta.get("reasoning"), str) and not delta.get("reasoning_content"):
            # The name of vLLM and OpenRouter; clients of Qwen models read the other one.
            mended = {k: v for k, v in mended.items() if k != "reasoning"}
            mended["reasoning_content"] = delta["reasoning"]
        fragments = delta.get("tool_calls")
        if isinstance(fragments, list):
            seed = f"{chunk.get('id')}/{chunk.get('created')}/{known.index}"
            told = self._fragments(fragments, known.calls, seed)
            if told != fragments or not told:
                mended = {**mended, "tool_calls": told or None}
        if mended is delta:
            return delta
        return {k: v for k, v in mended.items() if v is not None or k not in _NULLS}

    def _fragments(self, fragments: list[Any], calls: ToolCalls, seed: str) -> list[Any]:
        told = []
        for fragment in fragments:
            if not isinstance(fragment, dict):
                continue
            taken = calls.take(fragment)
            if taken is not None:
                told.append(_fragment(fragment, taken, seed))
            if taken is not None and taken.goes_on:
                self.growing = taken.call.pieces
            else:
                self.repeatable = False
        return told


def _fragment(fragment: Mapping[str, Any], taken: Taken, seed: str) -> dict[str, Any]:
    """A fragment as OpenAI sends it: id, type and name once, the arguments always a string.

    Clients add up what they get: a name or id that is repeated becomes part of the first
    (openai.lib.streaming, LangChain), and JavaScript adds the text "null" for a null.
    """
    call = taken.call
    told: dict[str, Any] = {**fragment, "index": call.number}
    told.pop("id", None)
    if taken.begins:
        told["id"] = call.id or made_up_id(seed, call.number)
        told["type"] = call.type
    elif not told.get("type"):
        told.pop("type", None)
    function = told.pop("function", None)
    if isinstance(function, dict) or taken.begins:
        function = dict(function) if isinstance(function, dict) else {}
        if not taken.names:
            function.pop("name", None)
        function["arguments"] = arguments_of(function)
        told["function"] = function
    return told


def finish_reason(told: Any, *, called: bool) -> str | None:
    """OpenAI's word for why an answer ended; None if it has not.

    Some hosts say "" before the end, DashScope's native form says "null". A word that nobody knows
    is `stop`. Agents run tools on `tool_calls` only, but some hosts say `stop` after a call.

    Args:
        told: the upstream's word.
        called: tool calls went by.
    """
    if not isinstance(told, str) or told in ("", "null"):
        return None
    finish = told if told in _FINISHES else _MEANINGS.get(told, "stop")
    return "tool_calls" if called and finish in ("stop", "function_call") else finish


def _lost(delta: Any, mended: Any) -> bool:
    """Whether a delta had fragments of tool calls, and none of them is left."""
    return isinstance(delta, dict) and bool(delta.get("tool_calls")) and "tool_calls" not in mended


def _says(delta: Any) -> bool:
    """Whether a delta has more to tell than whose it is."""
    return isinstance(delta, dict) and any(v for name, v in delta.items() if name != "role")
