"""A JSON object whose members keep their own bytes.

Client requests go upstream with as little change as possible: `1.0` must not become `1`, an image
of a megabyte must not be escaped anew. So the text is parsed once for its values and for the place
of each top-level member, and a change replaces exactly the members that it names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, NoReturn


class JsonObjectError(ValueError):
    """The text is no JSON object. `str()` says where and why, and quotes none of it."""


class Member(NamedTuple):
    """One top-level member: its value and where its text stands (indexes into the text)."""

    value: Any
    key_start: int
    value_start: int
    end: int


def _refuse_constant(name: str) -> NoReturn:
    # NaN and Infinity are Python's extension; RFC 8259 has no such values.
    raise ValueError(f"{name} is not JSON")


#: `json.dumps` would make an encoder for each value.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_SPACE: Final = " \t\n\r"
_SPACES: Final = re.compile(r"[ \t\n\r]*")


class JsonObject:
    """An immutable JSON object and the text it came from.

    Args:
        body: UTF-8; a byte order mark is tolerated.

    Raises:
        JsonObjectError: not UTF-8, not JSON, nested too deep, or not an object.
    """

    __slots__ = ("_body", "_members", "_text")

    def __init__(self, body: bytes) -> None:
        try:
            # Not the codec utf-8-sig, which is four times slower.
            self._text = body.decode().removeprefix("\ufeff")
            # A byte order mark is tolerated from a client and not passed on (RFC 8259 §8.1).
            self._body = body.removeprefix(b"\xef\xbb\xbf")
        except UnicodeDecodeError as error:
            raise JsonObjectError(f"not UTF-8 at byte {error.start}") from None
        try:
            self._members = _members(self._text)
        except JsonObjectError:
            raise
        except RecursionError:
            raise JsonObjectError("nested too deep") from None
        except json.JSONDecodeError as error:
            raise JsonObjectError(f"{error.msg} at character {error.pos}") from None
        except ValueError as error:
            raise JsonObjectError(str(error)) from None

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> Any:
        return self._members[name].value

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a member, or `default`; of repeated names the last counts."""
        member = self._members.get(name)
        return default if member is None else member.value

    def names(self) -> tuple[str, ...]:
        """The names of the members, in the text's order."""
        return tuple(self._members)

    def render(
        self, changes: Mapping[str, Any] | None = None, *, drop: Collection[str] = ()
    ) -> bytes:
        """The object as bytes, with some members replaced, added or left out.

        Members that are not named keep their text to the letter. Without any effective change the
        original bytes are returned, white space included.
        """
        changes = changes or {}
        if not changes and not any(name in self._members for name in drop):
            return self._body
        text = self._text
        parts = []
        for name, member in self._members.items():
            if name in drop:
                continue
            if name in changes:
                parts.append(text[member.key_start : member.value_start] + compact(changes[name]))
            else:
                parts.append(text[member.key_start : member.end])
        parts += [
            f"{compact(name)}:{compact(value)}"
            for name, value in changes.items()
            if name not in self._members
        ]
        return ("{" + ",".join(parts) + "}").encode()


def compact(value: Any) -> str:
    """A value as JSON without white space, in a form that UTF-8 can carry."""
    text = _encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can only write as an escape.
        return json.dumps(value, separators=(",", ":"))
    return text


def _skip_space(text: str, index: int) -> int:
    # Mostly there is none, and a match is dearer than this look.
    if text[index : index + 1] not in _SPACE:
        return index
    return _SPACES.match(text, index).end()  # type: ignore[union-attr]  # it always matches


def _members(text: str) -> dict[str, Member]:
    """Walk the top level by hand; every value is parsed by the standard library's C scanner."""
    index = _skip_space(text, 0)
    if text[index : index + 1] != "{":
        _DECODER.raw_decode(text, index)  # says what is wrong if it is no JSON at all
        raise JsonObjectError("not a JSON object")
    members: dict[str, Member] = {}
    index = _skip_space(text, index + 1)
    closed = text[index : index + 1] == "}"
    while not closed:
        key_start = index
        if text[index : index + 1] != '"':
            raise json.JSONDecodeError("Expecting property name in double quotes", text, index)
        name, index = _DECODER.raw_decode(text, index)
        index = _skip_space(text, index)
        if text[index : index + 1] != ":":
            raise json.JSONDecodeError("Expecting ':'", text, index)
        value_start = _skip_space(text, index + 1)
        value, end = _DECODER.raw_decode(text, value_start)
        # A repeated name moves to its last place: what other parsers take, too.
        members.pop(name, None)
        members[name] = Member(value, key_start, value_start, end)
        index = _skip_space(text, end)
        closed = text[index : index + 1] == "}"
        if not closed:
            if text[index : index + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or '}'", text, index)
            index = _skip_space(text, index + 1)
    index = _skip_space(text, index + 1)
    if index != len(text):
        raise json.JSONDecodeError("Extra data", text, index)
    return members
