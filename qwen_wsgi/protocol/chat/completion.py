"""The whole answer: aggregated from chunks, split into chunks, combined from several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol.answer_text import ITEM_BYTES, AnswerSize, Text, as_events
from qwen_wsgi.protocol.chat.errors import ERROR_FINISH
from qwen_wsgi.protocol.chat.normalize import FINISHES, TRUNCATED, finish_reason
from qwen_wsgi.protocol.chat.tool_calls import (
    MOST_CHOICES,
    NO_ARGUMENTS,
    WholeCalls,
    arguments_of,
)
from qwen_wsgi.protocol.json_access import choice_number, objects
from qwen_wsgi.protocol.json_object import encoded, loads
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

#: Members of a delta whose fragments are joined; of all others the last value is taken.
_JOINED: Final = frozenset({"content", "reasoning_content", "reasoning", "refusal"})


class Completion:
    """Aggregates chunks to a chat completion. Values of the wrong type are ignored.

    Args:
        size: what is kept counts against it; answers that become one share it.
    """

    def __init__(self, size: AnswerSize | None = None) -> None:
        self._size = AnswerSize() if size is None else size
        self._head = _Members(self._size)
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the next chunk, parsed.

        Raises:
            AnswerTooLarge: there is too much of something.
        """
        for name, value in chunk.items():
            if name == "choices":
                continue
            if name == "usage":
                self._usage = value or self._usage
            elif value not in (None, "") or name not in self._head:
                self._head.set(name, value)
        for choice in objects(chunk.get("choices")):
            index = choice_number(choice)
            known = self._choices.get(index)
            if known is None:
                if len(self._choices) >= MOST_CHOICES:
                    raise AnswerTooLarge(f"has more than {MOST_CHOICES} choices")
                known = self._choices[index] = _Choice(index, self._size)
            known.add(choice)

    @property
    def usage(self) -> Usage | None:
        """The usage of the call, if the upstream sent it."""
        return parse_usage(self._usage)

    def render(self, *, id: str, model: str, created: int) -> dict[str, Any]:
        """Render OpenAI's `chat.completion`; the arguments are used if no chunk had them.

        `refusal` and `logprobs` are there even when null: OpenAI's schema requires them.
        """
        head = self._head.values()
        seed = f"{head.get('id') or id}/{head.get('created') or created}"
        rendered = {
            **head,
            "id": head.get("id") or id,
            "object": "chat.completion",
            "created": head.get("created") or created,
            "model": head.get("model") or model,
            "choices": [self._choices[index].render(seed) for index in sorted(self._choices)],
        }
        if self._usage is not None:
            rendered["usage"] = self._usage
        return rendered


class _Json(bytes):
    """A value as JSON, or the values of a list without the brackets."""


class _Members:
    """Members of an object that comes in pieces.

    Texts are joined and lists extended where they are meant to be; of other values the last counts.
    Lists and objects are kept as JSON, which takes a fraction of their memory.
    """

    def __init__(self, size: AnswerSize) -> None:
        self._size = size
        self._members: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def set(self, name: str, value: Any) -> None:
        """Keep a value; one that every chunk repeats counts once."""
        is_scalar = not isinstance(value, list | dict)
        kept = value if is_scalar else _Json(encoded(value))
        if name not in self._members or self._members[name] != kept:
            self._count(name)
            self._size.add_json(value)
            self._members[name] = kept

    def join(self, name: str, text: str) -> None:
        """Add to a text."""
        kept = self._members.get(name)
        if not isinstance(kept, Text):
            self._count(name)
            kept = self._members[name] = Text(self._size)
        kept.add(text)

    def extend(self, name: str, values: list[Any]) -> None:
        """Add to a list."""
        kept = self._members.get(name)
        if not isinstance(kept, list):
            self._count(name)
            kept = self._members[name] = []
        if values:
            self._size.add(ITEM_BYTES // 8)
            kept.append(_Json(self._size.add_json(values)[1:-1]))

    def inner(self, name: str) -> _Members:
        """The members of an object that comes in pieces as well."""
        kept = self._members.get(name)
        if not isinstance(kept, _Members):
            self._count(name)
            kept = self._members[name] = _Members(self._size)
        return kept

    def _count(self, name: str) -> None:
        if name not in self._members:
            self._size.add(ITEM_BYTES // 8)
            self._size.add_text(name)

    def values(self) -> dict[str, Any]:
        """The object."""
        return {name: _value(kept) for name, kept in self._members.items()}


def _value(kept: Any) -> Any:
    if isinstance(kept, Text):
        return str(kept)
    if isinstance(kept, _Members):
        return kept.values()
    if isinstance(kept, list):
        return loads(b"[" + b",".join(kept) + b"]")
    return loads(kept) if isinstance(kept, _Json) else kept


class _Choice:
    """Aggregates one choice of a completion."""

    def __init__(self, index: int, size: AnswerSize) -> None:
        self._index = index
        #: Members that are joined, and the others.
        self._texts, self._message = _Members(size), _Members(size)
        self._tool_calls = WholeCalls(size)
        self._logprobs = _Members(size)
        self._rest = _Members(size)
        self._finish: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name == "finish_reason":
                self._finish = value or self._finish
            elif name == "logprobs":
                self._add_logprobs(value)
            elif name not in ("delta", "index") and value is not None:
                self._rest.set(name, value)
        delta = choice.get("delta")
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if value is not None:
                self._add_field(name, value)

    def _add_field(self, name: str, value: Any) -> None:
        message = self._message
        if name in _JOINED and isinstance(value, str):
            self._texts.join(name, value)
        elif name == "tool_calls":
            for fragment in objects(value):
                self._tool_calls.take(fragment)
        elif name == "function_call" and isinstance(value, dict):
            _join_function(message.inner(name), value)
        elif name == "audio" and isinstance(value, dict):
            _join_audio(message.inner(name), value)
        elif isinstance(value, list):
            message.extend(name, value)
        elif value != "":
            message.set(name, value)

    def _add_logprobs(self, logprobs: Any) -> None:
        if isinstance(logprobs, dict):
            for name, values in logprobs.items():
                if isinstance(values, list):
                    self._logprobs.extend(name, values)

    def render(self, seed: str) -> dict[str, Any]:
        texts, members = self._texts.values(), self._message.values()
        content, refusal = texts.pop("content", None), texts.pop("refusal", None)
        truncated = finish_reason(self._finish, called=False) in TRUNCATED
        calls = self._tool_calls.render(f"{seed}/{self._index}", truncated=truncated)
        message: dict[str, Any] = {
            "role": members.pop("role", None) or "assistant",
            "content": None if calls and not content else content,
            "refusal": refusal or None,
            **{name: text for name, text in texts.items() if text},
            **members,
        }
        if calls:
            message["tool_calls"] = calls
        function = members.get("function_call")
        if function is not None and not truncated:
            message["function_call"] = _with_arguments(function)
        logprobs = self._logprobs.values()
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": None, "refusal": None, **logprobs} if logprobs else None,
            "finish_reason": self._finish or ("tool_calls" if calls else "stop"),
            **self._rest.values(),
        }


def _join_function(call: _Members, fragment: Mapping[str, Any]) -> None:
    if "arguments" not in call:
        call.set("name", "")
        call.join("arguments", "")
    if name := fragment.get("name"):
        # Some servers repeat the whole name in every fragment; none sends it in pieces.
        call.set("name", name)
    if isinstance(arguments := fragment.get("arguments"), str):
        call.join("arguments", arguments)


def _with_arguments(function: Any) -> Any:
    """A call in the legacy form; one without arguments has an empty object."""
    if not isinstance(function, dict) or arguments_of(function).strip():
        return function
    return {**function, "arguments": NO_ARGUMENTS}


def _join_audio(audio: _Members, fragment: Mapping[str, Any]) -> None:
    for name, value in fragment.items():
        if name in ("data", "transcript") and isinstance(value, str):
            audio.join(name, value)
        else:
            audio.set(name, value)


def chunks_of(completion: Mapping[str, Any], *, with_usage: bool) -> list[bytes]:
    """Render a whole completion as the events of a stream.

    Raises:
        AnswerTooLarge: they would be too large.
    """
    head = {k: v for k, v in completion.items() if k not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    out = []
    for choice in objects(completion.get("choices")):
        message = choice.get("message")
        delta = dict(message) if isinstance(message, dict) else {}
        if calls := list(objects(delta.get("tool_calls"))):
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
        rest = {k: v for k, v in choice.items() if k not in ("message", "finish_reason")}
        rest.setdefault("index", 0)
        finish = choice.get("finish_reason") or ("tool_calls" if calls else "stop")
        if finish == ERROR_FINISH:  # its content is the error's text, not an answer
            out.append({**rest, "delta": delta, "finish_reason": finish})
            continue
        out.append({**rest, "delta": delta, "finish_reason": None})
        out.append({"index": rest["index"], "delta": {}, "finish_reason": finish})
    events = [{**head, "choices": [choice]} for choice in out]
    if with_usage and completion.get("usage"):
        events.append({**head, "choices": [], "usage": completion["usage"]})
    return as_events(events)


def mended(completion: dict[str, Any]) -> dict[str, Any]:
    """Mend a whole answer as a stream is: tool calls and finishes. Itself if nothing changed.

    Two calls with one id become two ids, a call without arguments gets an empty object, and each
    choice has one of OpenAI's finish reasons.
    """
    choices = completion.get("choices")
    if not isinstance(choices, list) or all(map(_is_plain, choices)):
        return completion
    seed = f"{completion.get('id')}/{completion.get('created')}"
    changed = [_mended(each, seed) if isinstance(each, dict) else each for each in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return completion
    return {**completion, "choices": changed}


def _is_plain(choice: Any) -> bool:
    """Whether there is nothing to be mended, as in nearly all: no calls, and a known finish."""
    if not isinstance(choice, dict):
        return False
    reason, message = choice.get("finish_reason"), choice.get("message")
    if not isinstance(reason, str) or reason not in FINISHES or not isinstance(message, dict):
        return False
    return message.get("tool_calls") is None and message.get("function_call") is None


def _mended(choice: dict[str, Any], seed: str) -> dict[str, Any]:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    calls, function = message.get("tool_calls"), message.get("function_call")
    fragments = list(objects(calls))
    reason = choice.get("finish_reason")
    if reason == ERROR_FINISH:
        return choice
    finish = finish_reason(reason, called=bool(fragments))
    if finish is None:
        finish = "tool_calls" if fragments else "function_call" if function else "stop"
    truncated = finish in TRUNCATED
    changes: dict[str, Any] = {}
    if calls is not None:
        changes["tool_calls"] = _mended_calls(
            fragments, f"{seed}/{choice.get('index') or 0}", truncated=truncated
        )
    if function is not None and not truncated:
        changes["function_call"] = _with_arguments(function)
    if all(message[name] == value for name, value in changes.items()):
        changes = {}
    if not changes and finish == reason:
        return choice
    changed = {**choice, "finish_reason": finish}
    if changes:
        kept = {name: value for name, value in {**message, **changes}.items() if value != []}
        changed["message"] = {"role": "assistant", "content": None, **kept}
    return changed


def _mended_calls(
    calls: list[dict[str, Any]], seed: str, *, truncated: bool
) -> list[dict[str, Any]]:
    """Mend the calls of a whole answer; members that nobody knows are kept."""
    assembled, sources = WholeCalls(AnswerSize()), []
    for place, call in enumerate(calls):
        taken = assembled.take({**call, "index": place})
        if taken is not None and taken.begins:
            sources.append(call)
    rendered = assembled.render(seed, truncated=truncated)
    return [
        {**source, **call, "function": {**_object(source.get("function")), **call["function"]}}
        for source, call in zip(sources, rendered, strict=True)
    ]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def combined(completions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine completions to one with the choices of all, renumbered; usage is summed, as billed.

    So `n` choices come from a model that gives one per call. The other members are the first's.
    """
    choices = [
        _with_pages(each, choice) for each in completions for choice in each.get("choices") or ()
    ]
    whole = {
        **completions[0],
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
    }
    used = [each["usage"] for each in completions if isinstance(each.get("usage"), Mapping)]
    if used:
        whole["usage"] = _sum(used)
    return whole


def _with_pages(completion: Mapping[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """A choice with what its own call found in the web, which has its own numbers."""
    if "search_info" not in completion or not isinstance(choice.get("message"), dict):
        return choice
    message = {"search_info": completion["search_info"], **choice["message"]}
    return {**choice, "message": message}


def _sum(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum numbers, objects member by member; of other values the last is taken."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            known = total.get(name)
            if isinstance(known, Mapping) and isinstance(value, Mapping):
                total[name] = _sum([known, value])
            elif isinstance(known, int | float) and isinstance(value, int | float):
                total[name] = known + value
            elif value is not None or name not in total:
                total[name] = value
    return total
