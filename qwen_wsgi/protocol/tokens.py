"""Estimates how many tokens a request has, without the model's vocabulary.

Qwen's tokenizer cuts a text into words, single digits, runs of signs and white space, and then
splits words that are not in its vocabulary. The first step is done here; the second is estimated by
rates, which were fitted to the vocabulary of Alibaba's `dashscope` package.

Measured errors: up to 12 % for English prose, code and JSON, 15 % for Chinese, Japanese and Korean,
30 % for other languages and encoded data. Models from Qwen3.5 on have a larger vocabulary, for
which the estimate is too high. An image counts as one of a million pixels, which is a guess. The
estimate shows a client when its context fills up; it is never reported as usage or billed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.json_access import Members, objects
from qwen_wsgi.protocol.json_object import JsonObject, compact

#: Length of a conversation's key.
KEY_BYTES: Final = 8

#: Strings that are about one token each: a word or a part of one, a digit, a run of signs, a line
#: end with its indentation.
_ASCII: Final = re.compile(
    r"[A-Z]?[a-z]{1,10}|[A-Z]{1,4}|[0-9]|[!-/:-@\[-`{-~]{1,4}|\n[ \t\n]*|[ \t]{2,}"
)
_OTHER: Final = re.compile(r"[^\x00-\x7f]+")

#: Tokens per character of other scripts: Han and its punctuation; kana; Hangul; Latin letters
#: with accents, which also break their words; Greek and Cyrillic; Hebrew and Arabic; Indic and the
#: rest of the plane; characters beyond it, such as emoji.
_RATES: Final = (
    (re.compile(r"[\u2e80-\u303f\u3100-\u9fff\uf900-\ufaff\uff00-\uffef]"), 0.7),
    (re.compile(r"[\u3040-\u30ff]"), 0.55),
    (re.compile(r"[\uac00-\ud7af\u1100-\u11ff]"), 0.95),
    (re.compile(r"[\x80-\u036f]"), 1.5),
    (re.compile(r"[\u0370-\u058f]"), 0.35),
    (re.compile(r"[\u0590-\u08ff]"), 0.5),
    (re.compile(r"[\u0900-\u10ff\u1200-\u2e7f\ua000-\uabff\ud7b0-\uf8ff]"), 1.2),
    (re.compile(r"[\U00010000-\U0010ffff]"), 1.7),
)

#: Tokens that the chat template adds: for each message, for each tool call and its answer, once for
#: a request with tools; and for the beginning of the answer.
_MESSAGE, _CALL, _TOOLS, _ANSWER = 5, 20, 150, 3

#: The roles that a tokenizer takes, besides the user's.
_ROLES: Final = {"system": "system", "developer": "system", "assistant": "assistant"}

#: An image of 1024 × 1024 pixels; a token is 32 × 32 of them (Model Studio's page on vision).
_IMAGE: Final = 1026
#: Other media: sound, video, a file.
_MEDIUM: Final = 2048


def estimate(request: Members) -> int:
    """Estimate the prompt tokens of a chat request: its `messages` and `tools`, at least 1.

    Thinking in the history is not counted, because hosts leave it out of the prompt. Invalid values
    count as their JSON text, or as nothing; there is no error.
    """
    total = _ANSWER + sum(map(_of_message, objects(request.get("messages"))))
    tools = list(objects(request.get("tools")))
    if tools:
        total += _TOOLS + sum(map(_of_json, tools))
    return total


def estimate_added(request: Members, counted: int) -> int:
    """Estimate the tokens of the messages behind the first `counted`, whose number is known."""
    return sum(map(_of_message, islice(objects(request.get("messages")), counted, None)))


def quick(request: JsonObject) -> int:
    """Estimate the prompt tokens of a chat request by its bytes: for what is reserved of a limit
    before each call. A token is about four bytes in most languages. Media that are in the request
    as text count as in `estimate`."""
    size, media = len(request.source), 0
    if size >= _WITH_MEDIA and any(map(request.may_hold, _MEDIA_MARKS)):
        for message in objects(request.get("messages")):
            for part in objects(message.get("content")):
                if not isinstance(part.get("text"), str):
                    size -= sum(map(len, _texts_in(part)))
                    media += _of_part(part)
    return max(1, size // 4) + media


#: Requests with media in them are longer, and have one of these.
_WITH_MEDIA: Final = 1024
_MEDIA_MARKS: Final = (b";base64,", b'"input_audio"', b'"file_data"')


def _texts_in(part: dict[str, Any]) -> Iterator[str]:
    """The texts of a part of another kind, which are in an object or a list of it."""
    for value in part.values():
        inner = value.values() if isinstance(value, dict) else value
        for each in inner if isinstance(inner, Iterable) and not isinstance(inner, str) else ():
            if isinstance(each, str):
                yield each
        if isinstance(value, str):
            yield value


class Countable(NamedTuple):
    """What of a prompt a tokenizer can count, and an estimate of the rest.

    Attributes:
        messages: with a text each, of the roles system, user and assistant.
        rest: tokens of tools, calls and media; 0 if there are none.
    """

    messages: list[dict[str, Any]]
    rest: int


def countable(request: Members) -> Countable:
    """Split a chat request into texts and the rest.

    Model Studio's tokenizer takes messages of texts. What it would make of tools is not documented.
    """
    messages: list[dict[str, Any]] = []
    rest = 0
    for message in objects(request.get("messages")):
        role, content = str(message.get("role")), message.get("content")
        parts = [content] if isinstance(content, str) else []
        for part in objects(content):
            if isinstance(text := part.get("text"), str):
                parts.append(text)
            else:
                rest += _of_part(part)
        for call in objects(message.get("tool_calls")):
            rest += _CALL + _of_json(call.get("function"))
        if role in ("tool", "function"):
            # The template shows the model an answer of a tool as a message of the user.
            rest += _CALL
        if text := "".join(parts):
            messages.append({"role": _ROLES.get(role, "user"), "content": text})
        else:
            rest += _MESSAGE
    if tools := list(objects(request.get("tools"))):
        rest += _TOOLS + sum(map(_of_json, tools))
    return Countable(messages, rest)


def beginnings(request: Members, *seed: str) -> list[bytes]:
    """Keys of the beginnings of a chat request: of its first message, its first two, and so on.

    The tools are part of each. Thinking, and marks for a cache, are part of none: clients send them
    in one turn and not in the next, and hosts do not count them.

    Args:
        seed: what else makes a difference, such as the model.
    """
    state = blake2b(digest_size=KEY_BYTES)
    _add(state, seed, _json(request.get("tools")))
    keys = []
    for message in objects(request.get("messages")):
        _add(state, str(message.get("role")), *_said(message))
        keys.append(state.digest())
    return keys


def _add(state: Any, *values: Any) -> None:
    """Add values, each with its end: "a", "b" is not "ab"."""
    for value in values:
        text = value if isinstance(value, str) else repr(value)
        state.update(text.encode(errors="replace") + b"\0")


def _said(message: dict[str, Any]) -> Iterator[str]:
    """What a message adds to the prompt."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in objects(content):
        text = part.get("text")
        if not isinstance(text, str):
            text = _json({name: part[name] for name in part if name != "cache_control"})
        yield text
    for call in objects(message.get("tool_calls")):
        yield _json(call.get("function"))


def _of_message(message: dict[str, Any]) -> int:
    count = _MESSAGE + _of_content(message.get("content"))
    count += _CALL * (message.get("role") == "tool")
    for call in objects(message.get("tool_calls")):
        count += _CALL + _of_json(call.get("function"))
    return count


def of_text(text: str) -> int:
    """Estimate the tokens of a text; 0 for `""`."""
    count = float(len(_ASCII.findall(text)))
    if not text.isascii():
        rest = "".join(_OTHER.findall(text))
        count += sum(len(kind.findall(rest)) * rate for kind, rate in _RATES)
    return round(count)


def _of_content(content: Any) -> int:
    if isinstance(content, str):
        return of_text(content)
    return sum(map(_of_part, objects(content)))


def _of_part(part: dict[str, Any]) -> int:
    text = part.get("text")
    if isinstance(text, str):
        return of_text(text)
    return _IMAGE if part.get("type") == "image_url" else _MEDIUM


def _of_json(value: Any) -> int:
    """Estimate the tokens of a value, which the template writes as JSON."""
    return of_text(_json(value))


def _json(value: Any) -> str:
    """A value as JSON; "" for one that cannot be written."""
    try:
        return compact(value)
    except (TypeError, ValueError, RecursionError):
        return ""
