"""Sets keys and one table in TOML, between marks; the user's own stand beside them. Pure.

The result is parsed: it must say what was there before, with ours in it, or nothing is changed. So
the search for lines may be simple.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from qwen_wsgi.clients.files import texts
from qwen_wsgi.clients.files.texts import Applied, Refused, TakenBack, lines_of

_KEY: Final = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")
_HEADER: Final = re.compile(r"\s*\[+([^\[\]]+)\]+\s*(?:#.*)?$")


def apply(text: str, top: Sequence[str], table: str, lines: Sequence[str]) -> Applied:
    """Set keys at the top, and a table.

    Args:
        top: lines `key = value` for the top, where no table has begun.
        table: the table's name, `a.b`.
        lines: of the table.

    Raises:
        Refused: the text is no TOML, or what is there already cannot be put aside.
    """
    before = _parsed(text)
    wanted = _with_ours(before, top, table, lines)
    keys = {_key(line) for line in top}
    found, header = [], ""
    for line in lines_of(text):
        header = _header(line) or header
        ours = header == table or header.startswith(f"{table}.")
        if (ours and _says_something(line)) or (not header and _key(line) in keys):
            line = texts.put_aside(line)
        found.append(line)
    newline = texts.newline_of(text)
    head = texts.block(top).replace("\n", newline)
    new = texts.join([head, *found], text, texts.block([f"[{table}]", *lines]))
    try:
        same = tomllib.loads(new) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise Refused(
            f"{', '.join(sorted(filter(None, keys)))} or [{table}] is in it already, in a form "
            "that cannot be put aside safely"
        )
    return Applied(new, None)


def take_back(text: str, keys: Iterable[str], table: str) -> TakenBack:
    """Undo `apply`: without our lines, and with those that were put aside.

    What somebody has added between the marks stays: programs append tables there.

    Raises:
        Refused: the text is no TOML, or a mark is missing.
    """
    _parsed(text)
    lines = lines_of(text)
    drop: set[int] = set()
    for start, end in texts.blocks(lines):
        drop |= {start, end} | _ours(lines, start + 1, end, set(keys), table)
    bare = [line for number, line in enumerate(lines) if number not in drop]
    new = "".join(texts.put_back(line) for line in bare)
    try:
        tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        new = "".join(bare)
        _parsed(new)
        return TakenBack(new, (texts.STAYS_ASIDE,))
    return TakenBack(new)


def _ours(lines: Sequence[str], start: int, end: int, keys: set[str], table: str) -> set[int]:
    """The lines between two marks that are ours."""
    found, header = set(), ""
    for number in range(start, end):
        line = lines[number]
        header = _header(line) or header
        foreign_key = not header and _says_something(line) and _key(line) not in keys
        if not foreign_key and header in ("", table):
            found.add(number)
    return found


def _with_ours(
    before: dict[str, Any], top: Sequence[str], table: str, lines: Sequence[str]
) -> dict[str, Any]:
    """What the file must say afterwards."""
    wanted = before | tomllib.loads("\n".join(top))
    *above, name = table.split(".")
    place = wanted
    for each in above:
        inner = place.get(each, {})
        if not isinstance(inner, dict):
            raise Refused(f"its {each} is not a table")
        place[each] = dict(inner)
        place = place[each]
    place[name] = tomllib.loads("\n".join(lines))
    return wanted


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _key(line: str) -> str:
    found = _KEY.match(line)
    return found[1] if found else ""


def _header(line: str) -> str:
    found = _HEADER.match(line)
    return re.sub(r"[\s\"']", "", found[1]) if found else ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise Refused("it cannot be parsed as TOML; the client cannot read it either") from None
