"""Parses JSON with comments, as in qwen-code's settings.json. Trailing commas stay errors."""

from __future__ import annotations

import json
import re
from typing import Any, Final

#: A string, or a comment. Strings come first, so that `"https://…"` is never taken for a comment.
#: An unclosed one runs to the end of the text.
_STRING_OR_COMMENT: Final = re.compile(
    r'"(?:\\.|[^"\\])*(?:"|\Z) | (?P<comment> //[^\n]* | /\*.*?(?:\*/|\Z) )',
    re.DOTALL | re.VERBOSE,
)
_NOT_SPACE: Final = re.compile(r"\S")


def strip_comments(text: str) -> str:
    """Replace comments by white space, so that an error's line and column stay right."""

    def blank(match: re.Match[str]) -> str:
        whole = match.group()
        return whole if match["comment"] is None else _NOT_SPACE.sub(" ", whole)

    return _STRING_OR_COMMENT.sub(blank, text)


def loads(text: str, *, comments: bool) -> Any:
    """Parse JSON as JavaScript's `JSON.parse` does (no NaN, no Infinity).

    Raises:
        ValueError: with line and column, and nothing of the text itself: it may hold secrets.
    """
    try:
        return json.loads(strip_comments(text) if comments else text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        # `from None`: the decoder's exception carries the whole document.
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
