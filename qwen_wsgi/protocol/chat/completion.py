"""The whole answer: aggregated from chunks, split into chunks, combined from several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.chat.errors import ERROR_FINISH
from qwen_wsgi.protocol.chat.normalize import TRUNCATED, finish_reason
from qwen_wsgi.protocol.chat.tool_calls import (
    MOST_CHOICES,
    NO_ARGUMENTS,
    ToolCalls,
    arguments_of,
)
from qwen_wsgi.protocol.json_access import choice_number, objects
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

#: Members of a delta whose fragments are joined; of all others the last value is taken.
_JOINED: Final = frozenset({"content", "reasoning_content", "reasoning", "refusal"})


def joined_text(pieces: Iterable[str]) -> str:
    """Join pieces of a text; the two halves of a surrogate pair become one character."""
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Each half came as an escape of its own; an unpaired one is replaced.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Completion:
    """Aggregates chunks to a chat completion. Values of the wrong type are ignored."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the next chunk, parsed."""
        for name, value in chunk.items():
            if name == "choices":
                continue
            if name == "usage":
                self._usage = value or self._usage
            elif value not in (None, "") or name not in self._head:
                self._head[name] = value
        for choice in objects(chunk.get("choices")):
            index = choice_number(choice)
            if index not in self._choices and len(self._choices) >= MOST_CHOICES:
                raise AnswerTooLarge(f"has more than {MOST_CHOICES} choices")
            self._choices.setdefault(index, _Choice(index)).add(choice)

    @property
    def usage(self) -> Usage | None:
        """The usage of the call, if the upstream sent it."""
        return parse_usage(self._usage)

    def render(self, *, id: str, model: str, created: int) -> dict[str, Any]:
        """Render OpenAI's `chat.completion`; the arguments are used if no chunk had them.

        `refusal` and `logprobs` are there even when null: OpenAI's schema requires them.
        """
        head = self._head
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


class _Choice:
    """Aggregates one choice of a completion."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._joined: dict[str, list[str]] = {}
        self._message: dict[str, Any] = {}
        self._tool_calls = ToolCalls()
        self._logprobs: dict[str, list[Any]] = {}
        self._rest: dict[str, Any] = {}
        self._finish: str | None = None

    def add(self, choice: Mapping[str, Any]) -> None:
        for name, value in choice.items():
            if name == "finish_reason":
                self._finish = value or self._finish
            elif name == "logprobs":
                self._add_logprobs(value)
            elif name not in ("delta", "index") and value is not None:
                self._rest[name] = value
        delta = choice.get("delta")
        for name, value in delta.items() if isinstance(delta, dict) else ():
            if value is not None:
                self._add_field(name, value)

    def _add_field(self, name: str, value: Any) -> None:
        message = self._message
        if name in _JOINED and isinstance(value, str):
            self._joined.setdefault(name, []).append(value)
        elif name == "tool_calls":
            for fragment in objects(value):
                self._tool_calls.take(fragment)
        elif name == "function_call" and isinstance(value, dict):
            _join_function(message.setdefault(name, {"name": "", "arguments": ""}), value)
        elif name == "audio" and isinstance(value, dict):
            _join_audio(message.setdefault(name, {}), value)
        elif isinstance(value, list) and isinstance(message.get(name), list):
            message[name] += value
        elif value != "":
            message[name] = value

    def _add_logprobs(self, logprobs: Any) -> None:
        if isinstance(logprobs, dict):
            for name, values in logprobs.items():
                if isinstance(values, list):
                    self._logprobs.setdefault(name, []).extend(values)

    def render(self, seed: str) -> dict[str, Any]:
        joined = {name: joined_text(parts) for name, parts in self._joined.items()}
        content, refusal = joined.pop("content", None), joined.pop("refusal", None)
        truncated = finish_reason(self._finish, called=False) in TRUNCATED
        calls = self._tool_calls.render(f"{seed}/{self._index}", truncated=truncated)
        message: dict[str, Any] = {
            "role": self._message.get("role") or "assistant",
            "content": None if calls and not content else content,
            "refusal": refusal or None,
            **{name: text for name, text in joined.items() if text},
            **{name: value for name, value in self._message.items() if name != "role"},
        }
        if calls:
            message["tool_calls"] = calls
        function = self._message.get("function_call")
        if function is not None and not truncated:
            message["function_call"] = _with_arguments(function)
        logprobs = {"content": None, "refusal": None, **self._logprobs} if self._logprobs else None
        return {
            "index": self._index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._finish or ("tool_calls" if calls else "stop"),
            **self._rest,
        }


def _join_function(call: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    if name := fragment.get("name"):
        # Some servers repeat the whole name in every fragment; none sends it in pieces.
        call["name"] = name
    if isinstance(arguments := fragment.get("arguments"), str):
        call["arguments"] += arguments


def _with_arguments(function: Any) -> Any:
    """A call in the legacy form; one without arguments has an empty object."""
    if not isinstance(function, dict) or arguments_of(function).strip():
        return function
    return {**function, "arguments": NO_ARGUMENTS}


def _join_audio(audio: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    for name, value in fragment.items():
        if name in ("data", "transcript") and isinstance(value, str):
            audio[name] = audio.get(name, "") + value
        else:
            audio[name] = value


def chunks_of(completion: Mapping[str, Any], *, with_usage: bool) -> list[bytes]:
    """Render a whole completion as the events of a stream."""
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
    events = [sse.render({**head, "choices": [choice]}) for choice in out]
    if with_usage and completion.get("usage"):
        events.append(sse.render({**head, "choices": [], "usage": completion["usage"]}))
    return events


def mended(completion: dict[str, Any]) -> dict[str, Any]:
    """Mend a whole answer as a stream is: tool calls and finishes. Itself if nothing changed.

    Two calls with one id become two ids, a call without arguments gets an empty object, and each
    choice has one of OpenAI's finish reasons.
    """
    choices = completion.get("choices")
    if not isinstance(choices, list):
        return completion
    seed = f"{completion.get('id')}/{completion.get('created')}"
    changed = [_mended(each, seed) if isinstance(each, dict) else each for each in choices]
    if all(new is old for new, old in zip(changed, choices, strict=True)):
        return completion
    return {**completion, "choices": changed}


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
    assembled, sources = ToolCalls(), []
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
