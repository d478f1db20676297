"""Sets keys, or an item of a list, at the top of a YAML file, between marks. Pure.

Only the lines at the left edge are read, and a file whose left edge has anything but comments and
`key: value` is left alone. So what stands further right need not be understood.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.clients.files import texts
from qwen_wsgi.clients.files.texts import Applied, Refused, TakenBack, lines_of

_KEY: Final = re.compile(r"""(?:([A-Za-z0-9_.-]+)|"([^"\\]+)"|'([^']+)')[ ]*:(?:[ \t]+(.*))?$""")
_COMMENT: Final = re.compile(r"(?:^|[ \t])#.*$")
_ITEM: Final = re.compile(r"([ ]*)-(?:[ ]|$)")


@dataclass(frozen=True)
class _Entry:
    """A key at the left edge, and the numbers of its lines.

    Attributes:
        value: what stands on the line of the key.
    """

    key: str
    value: str
    start: int
    end: int


def apply_keys(text: str, values: Sequence[tuple[str, Sequence[str]]]) -> Applied:
    """Set keys; the user's own of the same names are put aside.

    Args:
        values: each key, with all its lines.

    Raises:
        Refused: the file's left edge is not understood, or a key to be put aside has several lines.
    """
    lines = lines_of(text)
    there = {entry.key: entry for entry in _entries(lines)}
    for key, _ in values:
        if key in there:
            _put_aside(lines, there[key])
    ours = [line for _, more in values for line in more]
    new = texts.join(lines, text, texts.block(ours))
    _entries(lines_of(new))
    return Applied(new, _note(ours))


def apply_item(
    text: str, key: str, item: Sequence[str], *, name: str, around: Sequence[tuple[str, str]]
) -> Applied:
    """Put an item at the head of a list; make the list if there is none.

    Args:
        item: its lines, the first with `- `, without indentation.
        name: the item's name; a second item of this name is not written.
        around: keys that the file needs, too, each with its line.

    Raises:
        Refused: as above; or the list is in another form, or has an item of this name.
    """
    lines = lines_of(text)
    there = {entry.key: entry for entry in _entries(lines)}
    missing = [(each, [line]) for each, line in around if each not in there]
    list_ = there.get(key)
    if list_ is None or _is_empty(lines, list_):
        made = [(key, [f"{key}:", *(f"  {line}" for line in item)])]
        return apply_keys(text, [*missing, *made])
    first = next(
        (
            number
            for number in range(list_.start + 1, list_.end)
            if (line := lines[number].strip()) and not line.startswith("#")
        ),
        None,
    )
    found = _ITEM.match(lines[first]) if first is not None else None
    if list_.value or found is None:
        raise Refused(f"its {key} is not a list with one item to a line")
    if any(_names(line, name) for line in lines[list_.start : list_.end]):
        raise Refused(
            f"it has a model of the name {name} already; remove that, or name another with --model"
        )
    indent = found[1]
    ours = [f"{indent}{line}" for line in item]
    newline = texts.newline_of(text)
    own = texts.block(item, indent=indent).replace("\n", newline)
    new = "".join([*lines[: list_.start + 1], own, *lines[list_.start + 1 :]])
    _entries(lines_of(new))
    if missing:
        more = [line for _, each in missing for line in each]
        new = texts.join([new], text, texts.block(more))
        ours += more
    return Applied(new, _note(ours))


def take_back(text: str, note: Any) -> TakenBack:
    """Undo both.

    Raises:
        Refused: a mark is missing, or between them is something that we did not write.
    """
    lines = lines_of(text)
    ours = list(note["lines"])  # fingerprints: one may hold a key
    drop: set[int] = set()
    for start, end in texts.blocks(lines):
        for number in range(start + 1, end):
            line = lines[number].rstrip("\r\n")
            if _fingerprint(line) in ours:
                ours.remove(_fingerprint(line))
            elif line.strip():
                raise Refused(
                    f'line {number + 1}, between "{texts.BEGIN}" and "{texts.END}", was changed or '
                    "added since; move it out of there"
                )
        drop |= set(range(start, end + 1))
    bare = [line for number, line in enumerate(lines) if number not in drop]
    back = [texts.put_back(line) for line in bare]
    try:
        _entries(back)
    except Refused:
        return TakenBack("".join(bare), (texts.STAYS_ASIDE,))
    return TakenBack("".join(back))


def _note(lines: Sequence[str]) -> dict[str, list[str]]:
    return {"lines": [_fingerprint(line) for line in lines]}


def _fingerprint(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def _entries(lines: Sequence[str]) -> list[_Entry]:
    """The keys at the left edge.

    Raises:
        Refused: something else is there.
    """
    starts: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines):
        bare = line.rstrip("\r\n")
        if not bare.strip() or bare.startswith("#") or (bare[0] == " " and starts):
            continue
        if bare.rstrip() == "---" and not starts:
            continue
        if starts and not starts[-1][2] and _ITEM.match(bare):
            continue
        found = _KEY.match(bare)
        if found is None:
            raise Refused(f"line {number + 1} of it is not understood, which is not `key: value`")
        key = found[1] or found[2] or found[3]
        if any(key == each for _, each, _ in starts):
            raise Refused(f"it has {key} twice")
        starts.append((number, key, _COMMENT.sub("", found[4] or "").strip()))
    ends = [*(number for number, _, _ in starts), len(lines)][1:]
    return [
        _Entry(key, value, number, end)
        for (number, key, value), end in zip(starts, ends, strict=True)
    ]


def _is_empty(lines: Sequence[str], entry: _Entry) -> bool:
    return entry.value in ("[]", "~", "null") and not _has_more(lines, entry)


def _has_more(lines: Sequence[str], entry: _Entry) -> bool:
    return any(
        (line := lines[number].strip()) and not line.startswith("#")
        for number in range(entry.start + 1, entry.end)
    )


def _put_aside(lines: list[str], entry: _Entry) -> None:
    opens = entry.value[:1] in ("|", ">", "&", "*", "!", "{") and entry.value != "{}"
    if _has_more(lines, entry) or opens:
        raise Refused(f"its {entry.key} has several lines, and cannot be put aside safely")
    lines[entry.start] = texts.put_aside(lines[entry.start])


def _names(line: str, name: str) -> bool:
    found = re.match(r"[ ]*(?:-[ ]+)*name:[ ]*(.*)$", line.rstrip())
    return bool(found) and _COMMENT.sub("", found[1] if found else "").strip().strip("\"'") == name
