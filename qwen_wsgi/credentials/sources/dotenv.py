"""Parses `.env` files in the notation of the npm package dotenv, which qwen-code uses.

`NAME=value` or `NAME: value`, optionally after `export`. A value in single, double or back quotes
may span lines and contain `#`; only double quotes turn `\\n` and `\\r` into control characters. An
unquoted value ends at `#`. Lines without an assignment are skipped. The last assignment wins.
Unlike in the original, name, `=` and the start of the value must be on one line.
"""

from __future__ import annotations

import re
from typing import Final

_ASSIGNMENT: Final = re.compile(
    r"""
    ^ [^\S\n]* (?: export [^\S\n]+ )?
    (?P<name> [\w.-]+ )
    (?: [^\S\n]* = | : [^\S\n] )
    [^\S\n]*
    (?P<value> '(?:\\'|[^'])*' | "(?:\\"|[^"])*" | `(?:\\`|[^`])*` | [^\#\n]* )
    [^\S\n]* (?: \#.* )? $
    """,
    re.MULTILINE | re.VERBOSE | re.ASCII,
)


def parse(text: str) -> dict[str, str]:
    """Parse the assignments; never fails, like the original."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return {
        match["name"]: _unquoted(match["value"].strip()) for match in _ASSIGNMENT.finditer(text)
    }


def _unquoted(value: str) -> str:
    quote = value[:1]
    if len(value) > 1 and quote in "'\"`" and value.endswith(quote):
        value = value[1:-1]
    if quote == '"':
        value = value.replace("\\n", "\n").replace("\\r", "\r")
    return value
