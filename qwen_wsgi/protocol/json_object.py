"""A JSON object whose members keep their bytes.

Client requests go upstream with as little change as possible: `1.0` must not become `1`, and an
image of a megabyte must not be encoded again. So a change replaces exactly the members that it
names; all others keep their text.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import repeat
from typing import Annotated, Any, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from qwen_wsgi.protocol import large_json

T = TypeVar("T")

#: The largest `Summable`.
MOST: Final = 10**12
#: For shapes (`reader`): a whole number of which millions can be added up in 64 bits.
Summable = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]

#: An item's content: list, item, list of parts, part, text; and one more for a picture's URL.
_SPLIT_DEPTH: Final = 6
#: Bytes of JSON whose reading or writing takes long: two milliseconds.
LONG_BYTES: Final = 1 << 20
#: How a member of an object begins its value, also inside of texts: many of them take as long, and
#: are in five bytes each.
_MEMBER: Final = b'":'
_LONG_MEMBERS: Final = 10_000
_MEMBER_BYTES: Final = 5
#: A text that is searched for names in less time than it takes to read it once more.
_SHORT_BYTES: Final = 8192
#: What is shorter is never `is_long`.
LEAST_LONG_BYTES: Final = min(LONG_BYTES, _LONG_MEMBERS * _MEMBER_BYTES)
#: So many bytes are searched for a few others while Python looks at one member.
_LOOK_BYTES: Final = 1024


def is_long(text: bytes) -> bool:
    """Whether to work on a JSON text takes so long that other clients should not wait for it."""
    size = len(text)
    return size >= LONG_BYTES or (
        size >= _LONG_MEMBERS * _MEMBER_BYTES and text.count(_MEMBER) >= _LONG_MEMBERS
    )


#: Bytes of memory for each of these characters of a JSON text (CPython 3.11 to 3.13): an object, an
#: array with its first value, a further value, a member, and half of a text.
_VALUE_BYTES: Final = ((b"{", 150), (b"[", 128), (b",", 44), (b":", 60), (b'"', 30))
_OTHERS: Final = bytes(set(range(256)) - {sign[0] for sign, _ in _VALUE_BYTES})
#: Four bytes of UTF-8 begin with these.
_ASTRAL: Final = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4")
#: No estimate is more than so many times the size; arrays in arrays really take 50 times.
_MOST_TIMES: Final = 80


def reading_bytes(data: bytes, *, most: int) -> int:
    """How much memory a JSON text and its values take at most while msgspec reads it; 0 for a text
    that is too short to take `most`.

    An upper bound, because what stands in texts is counted as if it were outside. Python keeps a
    text in one, two or four bytes for each of its characters, whichever the widest one needs, and
    has two of these copies while it finds that out; one with escapes is first put together apart.
    It takes a millisecond for each MiB; what takes longer is looked for only above `most`.
    """
    size = len(data)
    if size * _MOST_TIMES <= most:
        return 0
    signs = data.translate(None, _OTHERS)  # each count in the whole text would take as long
    values = sum(signs.count(sign) * each for sign, each in _VALUE_BYTES)
    escaped, plain = b"\\" in data, data.isascii()
    times = 4 if escaped else 2
    if not plain and any(each in data for each in _ASTRAL):
        return size * (times + 5) + values
    if escaped:
        if size * (times + 5) + values <= most:
            return size * (times + 5) + values
        if b"\\ud" in data or b"\\uD" in data:
            times += 5
        elif not plain or b"\\u" in data:
            times += 2
    elif not plain:
        times += 2
    return size * times + values


class JsonObjectError(ValueError):
    """The text is not a JSON object. `str()` says where and why, without quoting it."""


class Member(NamedTuple):
    """A top-level member's value, and the start and end of its text."""

    value: Any
    start: int
    end: int


def _refuse_constant(name: str) -> NoReturn:
    # NaN and Infinity are Python's extension; RFC 8259 has no such values.
    raise ValueError(f"{name} is not JSON")


#: `json.dumps` would make an encoder for each value.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PLAIN: Final = msgspec.json.Encoder()
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])
_RAW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY: Final = msgspec.json.Decoder()
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)
_SPACE: Final = " \t\n\r"
_SPACES: Final = re.compile(r"[ \t\n\r]*")


class JsonObject:
    """An immutable JSON object and the text it came from.

    Parsed by msgspec, up to seven times as fast as by the standard library (docs/decisions/013).
    The latter parses what msgspec refuses: it reports the position of an error, and accepts
    unpaired surrogates, which clients that cut texts send.

    Attributes:
        source: the text, as UTF-8 without a byte order mark.
        get: the value of a member, or a default; for a repeated name, the last value. The values'
            own method, because a call asks a dozen times.

    Args:
        body: UTF-8; a byte order mark is tolerated.

    Raises:
        JsonObjectError: not UTF-8, not JSON, nested too deep, or not an object.
    """

    __slots__ = ("_members", "_repeated", "_texts", "_values", "get", "source")

    get: Callable[..., Any]

    def __init__(self, body: bytes) -> None:
        # A byte order mark is tolerated from a client and not passed on (RFC 8259 §8.1).
        self.source = body.removeprefix(b"\xef\xbb\xbf")
        #: The text of each member's value; read when it is needed.
        self._texts: Mapping[str, msgspec.Raw] | None = None
        #: The names that stand more than once; None if they were not looked for yet.
        self._repeated: Collection[str] | None = None
        #: `members`; -1 if they were not counted yet.
        self._members = -1
        values: dict[str, Any] | None
        try:  # msgspec's own errors are ValueErrors, as those of UTF-8
            if len(self.source) < large_json.LARGE_BYTES:
                values = _OBJECT.decode(self.source)
            else:
                values, self._repeated = large_json.read(self.source)
        except (ValueError, RecursionError):
            values = None
        if values is None:
            values, self._texts = _carefully(self.source)
        self._values = values
        self.get = values.get

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """The names of the members, in the text's order."""
        return tuple(self._values)

    @property
    def members(self) -> int:
        """How many members it has with those of all objects in it, counted up to 10,000."""
        if self._members < 0:
            self._members = large_json.members_in(self._values, _LONG_MEMBERS)
        return self._members

    @property
    def is_long(self) -> bool:
        """Whether to work on its values takes so long that other clients should not wait for it."""
        size = len(self.source)
        return size >= LONG_BYTES or (
            size >= _LONG_MEMBERS * _MEMBER_BYTES and self.members >= _LONG_MEMBERS
        )

    def may_hold(self, mark: bytes) -> bool:
        """Whether to look for something in the values whose text has these bytes.

        False: it is in none. True: it may be, or a look at all values takes less than to find out,
        because they are few and large.
        """
        size = len(self.source)
        if size >= large_json.LARGE_BYTES and self.members * _LOOK_BYTES < size:
            return self._members < _LONG_MEMBERS or mark in self.source
        return mark in self.source

    def repeated(self, names: Collection[str]) -> str | None:
        """One of these members that the text has more than once; None if there is none.

        Of a repeated name each parser takes another value (RFC 8259 §4), so that an upstream might
        see another request than the one that was checked.
        """
        if self._repeated is not None:
            return next((each for each in self._repeated if each in names), None)
        if len(self.source) < _SHORT_BYTES and self._stand_once(names):
            return None
        texts = self._texts
        if texts is None:
            texts = self._texts = _RAW.decode(self.source)
        # Without white space the text is as long as its members, and no member stands twice.
        length = sum(map(len, texts.values())) + sum(map(len, texts))
        if length + 4 * len(texts) + 1 == len(self.source):
            return None
        source = self.source
        for name in names:
            if name in texts and source.count(b'"%b"' % name.encode()) > 1:
                break
        else:
            if _ESCAPED_LETTER.search(source) is None:
                return None
        found: list[str] = []
        _members(source.decode(errors="surrogatepass"), found)
        return next((each for each in found if each in names), None)

    def _stand_once(self, names: Collection[str]) -> bool:
        """Whether none of these names is written twice, anywhere in a short text."""
        source = self.source
        if b"\\u00" in source:
            return False
        for name in self._values:
            if name in names and source.count(b'"%b"' % name.encode()) > 1:
                return False
        return True

    def render(
        self, changes: Mapping[str, Any] | None = None, *, drop: Collection[str] = ()
    ) -> bytes:
        """Render the object, with some members replaced, added or dropped.

        All other values keep their exact text. Without any effective change the original bytes are
        returned, including white space.
        """
        changes = changes or {}
        if not changes and not any(name in self._values for name in drop):
            return self.source
        if self._texts is None:
            if self._repeated == ():
                self._texts = large_json.member_texts(self.source, self._values)
            else:
                self._texts = _RAW.decode(self.source)
        members: dict[str, Any] = {
            name: text for name, text in self._texts.items() if name not in drop
        }
        members |= changes
        try:
            return msgspec.json.encode(members)
        except (UnicodeEncodeError, OverflowError):
            return _rendered(members)


#: No encoder escapes letters, but a name that is written so is the same name.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[567]")


def _rendered(members: Mapping[str, Any]) -> bytes:
    """Render what msgspec cannot: unpaired surrogates, and integers of any size."""
    texts = (
        (compact(name), bytes(value) if isinstance(value, msgspec.Raw) else compact(value).encode())
        for name, value in members.items()
    )
    return b"{" + b",".join(b"%b:%b" % (name.encode(), text) for name, text in texts) + b"}"


def compact(value: Any) -> str:
    """Render a value as JSON without white space that can be encoded as UTF-8."""
    text = _encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        # An unpaired surrogate, which JSON can only write as an escape.
        return json.dumps(value, separators=(",", ":"))
    return text


def compact_start(value: Any, most: int) -> str:
    """The first characters of `compact`, without rendering all of a long text."""
    return compact(_cut(value, most, _SPLIT_DEPTH))[:most]


def _cut(value: Any, most: int, depth: int) -> Any:
    """A value with only the beginnings of its texts, as far as they are not too deep in it."""
    if isinstance(value, str):
        return value[:most]
    if depth and isinstance(value, list):
        return [_cut(each, most, depth - 1) for each in value[:most]]
    if depth and isinstance(value, dict):
        return {name: _cut(each, most, depth - 1) for name, each in value.items()}
    return value


#: Renders a value without white space, ten times as fast as `compact`. It raises UnicodeEncodeError
#: where a text has an unpaired surrogate, and OverflowError for a number of more than 64 bits.
plain_bytes: Final[Callable[[Any], bytes]] = _PLAIN.encode


def reader(shape: type[T]) -> Callable[[bytes], T]:
    """A function that reads JSON of one shape: tuples and named tuples are arrays.

    The function raises ValueError for anything else, and RecursionError.
    """
    return msgspec.json.Decoder(shape).decode


def encoded(value: Any) -> bytes:
    """Render a value as JSON without white space, as bytes and without copies of its texts.

    What JSON has no numbers for, NaN and infinity, becomes null: 1e400 is read as infinity.
    """
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        return _in_pieces(value)
    except TypeError:  # a subclass of str, for one, which no parser makes
        return compact(value).encode()


def _in_pieces(value: Any) -> bytes:
    """Render a value with unpaired surrogates, or integers of any size, which msgspec cannot; the
    standard library would copy all texts twice, and write NaN."""
    out = io.BytesIO()  # grows in place, and gives its bytes away
    #: The arrays and objects that are not complete: what is still to come of each, and its end.
    open_ones: list[tuple[Iterator[tuple[str | None, Any]], bytes]] = [(iter([(None, value)]), b"")]
    comma = b""
    while open_ones:
        items, end = open_ones[-1]
        for name, item in items:
            out.write(comma)
            comma = b","
            if name is not None:
                out.write(_scalar(name) + b":")
            if isinstance(item, dict):
                open_ones.append((iter(item.items()), b"}"))
            elif isinstance(item, list | tuple):
                open_ones.append((zip(repeat(None), item, strict=False), b"]"))
            else:
                out.write(_scalar(item))
                continue
            out.write(b"{" if isinstance(item, dict) else b"[")
            comma = b""
            break
        else:
            out.write(end)
            open_ones.pop()
            comma = b","
    return out.getvalue()


def _scalar(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(value).encode()


def render_slowly(value: Any) -> bytes:
    """Render a value as `encoded` does, in many short calls of C, for a thread of its own.

    One call for eight megabytes keeps the interpreter for itself for seven milliseconds. So long
    texts are rendered in slices, and items one by one. What is nested deeper than an item's content
    is rendered in one call: to look at each value would take longer than to render it.
    """
    out = io.BytesIO()  # grows in place, and gives its bytes away
    _render_into(out, value, _SPLIT_DEPTH)
    return out.getvalue()


#: Characters: a tenth of a millisecond.
_SLICE: Final = 1 << 17


def _render_into(out: io.BytesIO, value: Any, depth: int) -> None:
    if isinstance(value, str) and len(value) > _SLICE:
        out.write(b'"')
        for start in range(0, len(value), _SLICE):
            out.write(encoded(value[start : start + _SLICE])[1:-1])
        out.write(b'"')
    elif isinstance(value, dict) and value and depth:
        before = b"{"
        for name, each in value.items():
            out.write(b"%b%b:" % (before, encoded(name)))
            _render_into(out, each, depth - 1)
            before = b","
        out.write(b"}")
    elif isinstance(value, list | tuple) and value and depth:
        before = b"["
        for each in value:
            out.write(before)
            _render_into(out, each, depth - 1)
            before = b","
        out.write(b"]")
    else:
        out.write(encoded(value))


def with_members(data: bytes, changes: Mapping[str, Any]) -> bytes:
    """Replace members of an object, or add them; the values of the others are not even parsed.

    Raises:
        JsonObjectError: it is no JSON object.
    """
    try:
        return msgspec.json.encode(_RAW.decode(data) | dict(changes))
    except (ValueError, RecursionError):
        raise JsonObjectError("not a JSON object") from None


#: A longer answer of an upstream must be JSON that msgspec reads: the standard library, which reads
#: more, takes up to 14 times the size of a text.
MOST_SLOWLY: Final = 2 * 1024 * 1024


def loads(data: bytes, *, most_slowly: int | None = None) -> Any:
    """Parse any JSON value; unpaired surrogates are accepted.

    Args:
        most_slowly: the most bytes of a text that msgspec does not read.

    Raises:
        ValueError: it is not JSON, or not UTF-8.
        RecursionError: it is nested too deep.
    """
    try:
        return _ANY.decode(data)
    except ValueError:
        if most_slowly is not None and len(data) > most_slowly:
            raise
    return _DECODER.decode(data.decode())


_ELEMENTS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def elements(data: bytes) -> list[bytes]:
    """The elements of a JSON array, each as it is written.

    Raises:
        ValueError: it is no array, or msgspec does not read it.
    """
    return [bytes(each) for each in _ELEMENTS.decode(data)]


def _carefully(body: bytes) -> tuple[dict[str, Any], dict[str, msgspec.Raw]]:
    """Parse an object with the standard library: its values, and their texts.

    Raises:
        JsonObjectError: the body is not a JSON object.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise JsonObjectError(f"not UTF-8 at byte {error.start}") from None
    try:
        members = _members(text)
    except JsonObjectError:
        raise
    except RecursionError:
        raise JsonObjectError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise JsonObjectError(f"{error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise JsonObjectError(str(error)) from None
    return (
        {name: member.value for name, member in members.items()},
        {
            name: msgspec.Raw(text[member.start : member.end].encode())
            for name, member in members.items()
        },
    )


def _skip_space(text: str, index: int) -> int:
    # Mostly there is none, and a regex match costs more than this test.
    if text[index : index + 1] not in _SPACE:
        return index
    return _SPACES.match(text, index).end()  # type: ignore[union-attr]  # it always matches


def _members(text: str, repeated: list[str] | None = None) -> dict[str, Member]:
    """Parse the top level here, and every value with the standard library's C scanner.

    Args:
        repeated: the names that stand more than once are added to it.
    """
    index = _skip_space(text, 0)
    if text[index : index + 1] != "{":
        _DECODER.raw_decode(text, index)  # raises the error if it is not JSON
        raise JsonObjectError("not a JSON object")
    members: dict[str, Member] = {}
    index = _skip_space(text, index + 1)
    closed = text[index : index + 1] == "}"
    while not closed:
        if text[index : index + 1] != '"':
            raise json.JSONDecodeError("Expecting property name in double quotes", text, index)
        name, index = _DECODER.raw_decode(text, index)
        index = _skip_space(text, index)
        if text[index : index + 1] != ":":
            raise json.JSONDecodeError("Expecting ':'", text, index)
        start = _skip_space(text, index + 1)
        value, end = _DECODER.raw_decode(text, start)
        # A repeated name moves to its last place, as in other parsers.
        if members.pop(name, None) is not None and repeated is not None:
            repeated.append(name)
        members[name] = Member(value, start, end)
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
