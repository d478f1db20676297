"""Spares the further looks at the text of a large JSON object: each costs as much as a part of its
reading.

A megabyte is read once. Which names stand twice is seen while it is read, and where its members
stand is looked for at its two ends, because one member, mostly the messages, is nearly all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import msgspec

#: From these sizes on it is worth its own costs: `read`, and `member_texts`.
LARGE_BYTES: Final = 8 * 1024
_AROUND_BYTES: Final = 64 * 1024


class _Name(str):
    """A member's name as it stands in a text: another one is never the same, even if it is equal,
    so that a dict keeps both."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


#: An object with more members is no request that anybody reads, and as objects of their own the
#: names would take several times as long.
_MOST_NAMES: Final = 10_000

_RAW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY: Final = msgspec.json.Decoder(dict[str, Any])


class _TooManyNames(Exception):
    """Ends the reading."""


def read(text: bytes) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Parse an object: its values, and the names that stand more than once, in their order; None
    where that was not found out, because there are too many names.

    Raises:
        ValueError: msgspec does not take it.
        RecursionError: it is nested too deep.
    """
    left = _MOST_NAMES

    def name_of(kind: type[_Name], name: str) -> _Name:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooManyNames
        return kind(name)

    try:
        named = msgspec.json.decode(text, type=dict[_Name, Any], dec_hook=name_of)
    except _TooManyNames:
        return _ANY.decode(text), None
    values = dict(zip(map(str, named), named.values(), strict=True))
    if len(values) == len(named):
        return values, ()
    seen: set[str] = set()
    repeated = []
    for name in map(str, named):
        if name in seen:
            repeated.append(name)
        seen.add(name)
    return values, tuple(repeated)


#: A name that has the same bytes in every text, unless its letters are escaped.
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z_]*")
_SPACE: Final = b" \t\n\r"
_COLON: Final = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")
#: The part of a text, at each end, in which the small members are looked for.
_END_PART: Final = 16
#: A shorter text is not nearly all of a large object.
_LONG_TEXT: Final = 1024


def member_texts(source: bytes, values: Mapping[str, Any]) -> Mapping[str, msgspec.Raw]:
    """The text of each member's value, by its name; of repeated names the last.

    Args:
        source: of an object that msgspec takes.
        values: all that `read` has found; no name may stand twice.
    """
    if len(source) >= _AROUND_BYTES:
        names = list(values)
        for place, name in enumerate(names):
            if _may_be_large(values[name]) and _PLAIN.fullmatch(name):
                found = _around(source, names, place)
                if found is not None:
                    return found
    return _RAW.decode(source)


def _may_be_large(value: Any) -> bool:
    return isinstance(value, list | dict) or (isinstance(value, str) and len(value) >= _LONG_TEXT)


def _around(source: bytes, names: list[str], place: int) -> dict[str, msgspec.Raw] | None:
    """The texts of all members, of which the one at `place` is not read; None if the others are not
    near the ends, or it cannot be told where they begin."""
    end_bytes = len(source) // _END_PART
    start = source.find(b'"%b"' % names[place].encode(), 0, end_bytes)
    head = None if start < 0 else _members_before(source, start)
    if head is None or list(head) != names[:place]:
        return None
    tail: dict[str, msgspec.Raw] = {}
    if place == len(names) - 1:
        stop = source.rindex(b"}")
    else:
        if not _PLAIN.fullmatch(names[place + 1]):
            return None
        stop = source.rfind(b'"%b"' % names[place + 1].encode(), len(source) - end_bytes)
        tail = (_members_from(source, stop) if stop > 0 else None) or {}
        if list(tail) != names[place + 1 :]:
            return None
    colon = _COLON.match(source, start + len(names[place]) + 2)
    assert colon is not None, "it is the name of a member"
    stop = _without_space(source, stop)
    if tail:
        stop = _without_space(source, stop - 1)  # and without the comma
    view = memoryview(source)
    return {**head, names[place]: msgspec.Raw(view[colon.end() : stop]), **tail}


def _members_before(source: bytes, place: int) -> dict[str, msgspec.Raw] | None:
    """The members before a place; None if no member of the object begins there.

    With a brace in the place of the comma they are an object only if the place is outside of all
    texts, and inside of no other object and of no array.
    """
    before = source[:place].rstrip(_SPACE)
    if before.endswith(b","):
        before = before[:-1]
    elif before.strip(_SPACE) != b"{":
        return None
    return _object(before + b"}")


def _members_from(source: bytes, place: int) -> dict[str, msgspec.Raw] | None:
    """The members from a place on; None if no member of the object begins there.

    In a text a quote has a backslash before it, and behind the quote that ends one there is no
    letter. So this quote begins a text if there is none before it, and behind a brace it can only
    be that of a name in the object itself: otherwise one brace or bracket would be too many.
    """
    if source[place - 1 : place] not in (b",", b" ", b"\t", b"\n", b"\r"):
        return None
    return _object(b"{" + source[place:])


def _object(text: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return _RAW.decode(text)
    except (ValueError, RecursionError):
        return None


def _without_space(source: bytes, stop: int) -> int:
    """Where the white space before a place begins."""
    while source[stop - 1 : stop] in (b" ", b"\t", b"\n", b"\r"):
        stop -= 1
    return stop


def members_in(value: Any, most: int) -> int:
    """How many members all objects in a value have together; not counted any further than `most`.

    It looks at each value, in comprehensions: a third of what the reading of them costs.
    """
    count = 0
    level = [value]
    while level:
        objects = [each for each in level if each.__class__ is dict]
        count += sum(map(len, objects))
        if count >= most:
            return most
        arrays = [each for each in level if each.__class__ is list]
        values = chain(chain.from_iterable(map(dict.values, objects)), chain.from_iterable(arrays))
        level = [each for each in values if each.__class__ is dict or each.__class__ is list]
    return count
