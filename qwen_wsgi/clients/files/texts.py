"""What edits of text files share: how they refuse, lines, and the marks around our lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

BEGIN: Final = "# >>> qwen-proxy"
END: Final = "# <<< qwen-proxy"
#: Before a line of the user's that has no effect while ours are there.
ASIDE: Final = "#qwen-proxy# "
#: What is told where such lines cannot be put back.
STAYS_ASIDE: Final = (
    f"lines that begin with {ASIDE.strip()} stay so: the file has other ones of that name now"
)

_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")


class Refused(Exception):
    """A file stays as it is. `str()` is a clause that says why; it has no text of the file."""


@dataclass(frozen=True)
class Applied:
    """A file with our change.

    Attributes:
        text: the whole file.
        note: what is needed to take the change back, for JSON.
    """

    text: str
    note: Any


@dataclass(frozen=True)
class TakenBack:
    """A file without our change.

    Attributes:
        text: the whole file; "" if nothing but our change was in it.
        kept: what stays although we had written it, a clause each: somebody has changed it since.
    """

    text: str
    kept: tuple[str, ...] = ()


def lines_of(text: str) -> list[str]:
    """The lines of a text, each with its line feed."""
    return _LINE.findall(text)


def newline_of(text: str) -> str:
    """How lines end in a text."""
    return "\r\n" if "\r\n" in text else "\n"


def block(lines: Iterable[str], *, indent: str = "") -> str:
    """Our lines between marks."""
    return "".join(f"{indent}{line}\n" for line in (BEGIN, *lines, END))


def join(lines: Sequence[str], text_before: str, more: str) -> str:
    """Lines, and a block behind them that begins on a line of its own."""
    newline = newline_of(text_before)
    head = "".join(lines)
    if head and not head.endswith("\n"):
        head += newline
    return head + more.replace("\n", newline)


def blocks(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Where our blocks are: the numbers of the lines with their marks.

    Raises:
        Refused: a mark is missing.
    """
    found: list[tuple[int, int]] = []
    begun: int | None = None
    for number, line in enumerate(lines):
        mark = line.strip()
        if mark == BEGIN and begun is None:
            begun = number
        elif mark == END and begun is not None:
            found.append((begun, number))
            begun = None
        elif mark in (BEGIN, END):
            break
    else:
        if begun is None:
            return found
    raise Refused(f'a line "{BEGIN}" or "{END}" is missing, so what is ours cannot be told')


def put_aside(line: str) -> str:
    """A line of the user's, as a comment that can be undone."""
    return ASIDE + line


def put_back(line: str) -> str:
    """The line again, if it is such a comment."""
    return line.removeprefix(ASIDE)
