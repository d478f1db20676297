"""Replaces OpenAI's custom tools, whose input is a plain text, by functions, and turns calls back.

Hosts know only functions, so the model writes `{"input": "…"}` where the client's tool takes plain
text. The text is streamed while it grows; escapes may be cut anywhere.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from qwen_wsgi.protocol.answer_text import AnswerSize, Text

#: The tokens before the text; white space may be between them.
_OPENING: Final = ("{", '"input"', ":", '"')
_SPACE: Final = re.compile(r"[ \t\r\n]*")
#: Characters of an opening. A longer one is read again for each piece that only adds white space.
_LONGEST_OPENING: Final = 1024

#: The plain characters of a string. Line ends are invalid there, but models write them.
_PLAIN: Final = re.compile(r'[^"\\]*')
_SHORT: Final = {
    **{'"': '"', "\\": "\\", "/": "/"},
    **{"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"},
}
_HEX: Final = re.compile(r"[0-9a-fA-F]{4}")


def parameters() -> dict[str, Any]:
    """The parameters of a function that replaces a custom tool."""
    text = {"type": "string", "description": "The whole input of the tool, as plain text."}
    return {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }


def grammar_note(definition: str, syntax: str) -> str:
    """The grammar of a custom tool's input as a description: Qwen's hosts cannot enforce one."""
    return f"The input must match this {syntax or 'given'} grammar:\n{definition}"


def input_of(arguments: str) -> str:
    """The plain text of a whole call."""
    text = FreeText()
    return text.feed(arguments) + text.end()


class FreeText:
    """Unwraps one input. Arguments of another form than `{"input": "…"}` are returned unchanged,
    but for an empty object, which has no text.

    The pieces that `feed` and `end` return join to the same text however the arguments were cut.

    Args:
        size: what is kept counts against it.
    """

    def __init__(self, size: AnswerSize | None = None) -> None:
        self._state = "opening"
        #: Arguments that were not returned yet: the opening, or half an escape.
        self._held = ""
        #: An object of another form.
        self._object = Text(AnswerSize() if size is None else size)

    def feed(self, arguments: str) -> str:
        """Take a piece of the arguments; return the text that it adds."""
        if self._state == "opening":
            self._held += arguments
            self._open()
            if self._state != "inside":
                if self._state != "bare":
                    return ""
                arguments, self._held = self._held, ""
                return arguments
            arguments, self._held = self._held, ""
        if self._state == "inside":
            return self._inside(arguments)
        if self._state == "bare":
            return arguments
        if self._state == "whole":
            self._object.add(arguments)
        return ""

    def end(self) -> str:
        """Return the rest of the text after the last arguments."""
        state, self._state = self._state, "closed"
        if state == "whole":
            return _whole(str(self._object))
        if state == "opening":
            return self._held
        if state == "inside" and (half := _surrogate(self._held)) is not None:
            return chr(half)
        return ""

    def _open(self) -> None:
        """Look for the opening, and skip it."""
        at, text = 0, self._held
        for each in _OPENING:
            at = _end_of_space(text, at)
            if at > _LONGEST_OPENING:
                self._open_otherwise(text)
                return
            if not text.startswith(each, at):
                if each.startswith(text[at:]):
                    return  # more has to come
                self._open_otherwise(text)
                return
            at += len(each)
        self._state, self._held = "inside", text[at:]

    def _open_otherwise(self, text: str) -> None:
        """Handle another opening: an object is kept until its end, anything else is plain text."""
        start = _end_of_space(text, 0)
        if start <= _LONGEST_OPENING and text[start] == "{":
            self._state, self._held = "whole", ""
            self._object.add(text)
        else:
            self._state = "bare"

    def _inside(self, arguments: str) -> str:
        text, self._held = self._held + arguments, ""
        pieces: list[str] = []
        at = 0
        while at < len(text):
            plain = _PLAIN.match(text, at)
            if plain is not None and plain.end() > at:
                pieces.append(plain[0])
                at = plain.end()
            elif text[at] == '"':
                self._state = "closed"
                break
            else:
                escape = _escape(text, at)
                if escape is None:
                    self._held = text[at:]
                    break
                pieces.append(escape[0])
                at = escape[1]
        return "".join(pieces)


def _escape(text: str, at: int) -> tuple[str, int] | None:
    """The character of the escape that begins at `at`, and its end; None if it is incomplete."""
    kind = text[at + 1 : at + 2]
    if kind != "u":
        return (_SHORT.get(kind, "\\" + kind), at + 2) if kind else None
    end = at + 6
    if _HEX.fullmatch(text, at + 2, end) is None:
        if len(text) < end and all(each in "0123456789abcdefABCDEF" for each in text[at + 2 :]):
            return None
        return "\\u", at + 2
    code = int(text[at + 2 : end], 16)
    if not 0xD800 <= code < 0xDC00:
        return chr(code), end
    rest = text[end : end + 6]
    if len(rest) < 6 and _begins_escape(rest):
        return None
    if (low := _surrogate(rest)) is not None and 0xDC00 <= low < 0xE000:
        return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)), end + 6
    return chr(code), end


def _begins_escape(text: str) -> bool:
    """Whether a text is the beginning of `\\uXXXX`."""
    return "\\u".startswith(text[:2]) and all(each in "0123456789abcdefABCDEF" for each in text[2:])


def _surrogate(text: str) -> int | None:
    """The code of an escaped surrogate at the start of a text, or None."""
    if not text.startswith("\\u") or _HEX.fullmatch(text, 2, 6) is None:
        return None
    code = int(text[2:6], 16)
    return code if 0xD800 <= code < 0xE000 else None


def _whole(arguments: str) -> str:
    try:
        value = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    if value == {}:
        return ""
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def _end_of_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()
