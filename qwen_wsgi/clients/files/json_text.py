"""Sets members in JSON with comments, and takes them back; every other character stays. Pure.

Comments and commas behind the last member are read everywhere: some clients allow them, and whether
this one does is not ours to judge.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.clients.files.texts import Applied, Refused, TakenBack, newline_of

_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
#: What may stand behind a member on its line.
_REST_OF_LINE: Final = re.compile(r"[ \t]*(?://[^\r\n]*|/\*[^\r\n]*?\*/[ \t]*)?(?=\r?\n)")
_DEPTH: Final = 100
_INDENT: Final = "  "


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


_SCALARS: Final = json.JSONDecoder(parse_constant=_no_constant)


@dataclass(frozen=True)
class _Node:
    """A value, and where it stands.

    Attributes:
        members: of an object: where each key begins, and its value.
    """

    start: int
    end: int
    value: Any
    members: Mapping[str, tuple[int, _Node]] | None = None


def apply(text: str, values: Mapping[str, Any]) -> Applied:
    """Set each member of some values, and leave the others.

    The note is `{"changes": [{"path", "ours", "before"}], "made": [path]}`: of each member a
    fingerprint of our value and the text that stood there, and the objects that were made for them.

    Args:
        text: "" for a file that is not there yet.

    Raises:
        Refused: the text is no JSON, or not an object.
    """
    if not text.strip():
        text = "{}" + newline_of(text)
    changes, made = [], []
    for path, value in list(_leaves(_root(text), values, ())):
        text, before, above = _put(text, path, value)
        changes.append({"path": list(path), "ours": _fingerprint(value), "before": before})
        made += [list(each) for each in above]
    return Applied(text, {"changes": changes, "made": made})


def take_back(text: str, note: Mapping[str, Any]) -> TakenBack:
    """Undo `apply`, but for members that somebody has changed since.

    Raises:
        Refused: the text is no JSON.
    """
    kept = []
    for change in reversed(note["changes"]):
        path = tuple(change["path"])
        node = _find(_root(text), path)
        if node is None:
            continue
        if _fingerprint(node.value) != change["ours"]:
            kept.append(f"{'.'.join(path)} was changed since, and stays")
        elif change["before"] is None:
            text = _removed(text, path)
        else:
            text = text[: node.start] + change["before"] + text[node.end :]
    for path in sorted((tuple(each) for each in note["made"]), key=len, reverse=True):
        node = _find(_root(text), path)
        if node is not None and node.value == {} and not _comment_in(text, node):
            text = _removed(text, path)
    root = _root(text)
    if root.value == {} and not text[: root.start].strip() + text[root.end :].strip():
        text = text if _comment_in(text, root) else ""
    return TakenBack(text, tuple(kept))


def _leaves(
    node: _Node, values: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The members to set: as deep as there is an object, or nothing, in the file."""
    for name, value in values.items():
        there = (node.members or {}).get(name)
        inner = there[1] if there else _Node(0, 0, {}, {})
        if isinstance(value, dict) and value and inner.members is not None:
            yield from _leaves(inner, value, (*path, name))
        elif there is None or inner.value != value:
            yield (*path, name), value


def _put(
    text: str, path: tuple[str, ...], value: Any
) -> tuple[str, str | None, list[tuple[str, ...]]]:
    """Set one member: the new text, what stood there, and the objects that were made for it."""
    node, depth = _root(text), 0
    while depth < len(path) and node.members and path[depth] in node.members:
        node = node.members[path[depth]][1]
        depth += 1
    if depth == len(path):
        rendered = _rendered(value, _indent_at(text, node.start), newline_of(text))
        return (
            text[: node.start] + rendered + text[node.end :],
            text[node.start : node.end],
            [],
        )
    for name in reversed(path[depth + 1 :]):
        value = {name: value}
    above = [path[:end] for end in range(depth + 1, len(path))]
    return _with_member(text, node, path[depth], value), None, above


def _with_member(text: str, node: _Node, name: str, value: Any) -> str:
    """Add a member behind the others of an object."""
    newline, outer = newline_of(text), _indent_at(text, node.start)
    inner = text[node.start + 1 : node.end - 1]
    members = list((node.members or {}).values())
    one_line = bool(members) and "\n" not in inner
    indent = _indent_at(text, members[-1][0]) if members else outer + _INDENT
    if members and "\n" not in text[node.start : members[-1][0]]:
        indent = outer + _INDENT
    member = f"{json.dumps(name)}: {_rendered(value, outer if one_line else indent, newline)}"
    if not members:
        close = "" if "\n" in inner else f"{newline}{outer}"
        new = f"{newline}{indent}{member}"
        return text[: node.start + 1] + new + inner + close + text[node.end - 1 :]
    end = members[-1][1].end
    trailing = _comma(text, end)
    after = end if trailing is None else trailing + 1
    place = after
    if not one_line and (rest := _REST_OF_LINE.match(text, after, node.end)):
        place = rest.end()
    space = " " if one_line else f"{newline}{indent}"
    comma, closing = (",", "") if trailing is None else ("", ",")
    head = text[:end] + comma + text[end:place]
    return f"{head}{space}{member}{closing}{text[place:]}"


def _removed(text: str, path: tuple[str, ...]) -> str:
    """Without one member, and the comma and the space that belong to it."""
    above = _find(_root(text), path[:-1])
    assert above is not None and above.members is not None
    start, node = above.members[path[-1]]
    starts = [begin for begin, _ in above.members.values()]
    index = starts.index(start)
    begin, end = _space_before(text, start), node.end
    following = _comma(text, end)
    if following is not None:
        return _closed(text[:begin] + text[following + 1 :], path[:-1])
    if index:
        before = list(above.members.values())[index - 1][1].end
        comma = _comma(text, before)
        assert comma is not None
        return text[:comma] + text[comma + 1 : begin] + text[end:]
    return _closed(text[:begin] + text[end:], path[:-1])


def _closed(text: str, path: tuple[str, ...]) -> str:
    """An object that has become empty, as `{}`."""
    node = _find(_root(text), path)
    if node is None or node.value != {} or _comment_in(text, node):
        return text
    return text[: node.start] + "{}" + text[node.end :]


def _comment_in(text: str, node: _Node) -> bool:
    return bool(text[node.start + 1 : node.end - 1].strip())


def _comma(text: str, position: int) -> int | None:
    """Where the comma behind a value is."""
    position = _skip(text, position)
    return position if text[position : position + 1] == "," else None


def _space_before(text: str, position: int) -> int:
    start = position - len(text[:position]) + len(text[:position].rstrip(" \t"))
    for newline in ("\r\n", "\n"):
        if text.endswith(newline, 0, start):
            return start - len(newline)
    return start


def _indent_at(text: str, position: int) -> str:
    """The white space at the beginning of a line."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _rendered(value: Any, indent: str, newline: str) -> str:
    return json.dumps(value, indent=len(_INDENT), ensure_ascii=False).replace(
        "\n", newline + indent
    )


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _find(node: _Node, path: Sequence[str]) -> _Node | None:
    for name in path:
        there = (node.members or {}).get(name)
        if there is None:
            return None
        node = there[1]
    return node


def _root(text: str) -> _Node:
    """The object that a text is.

    Raises:
        Refused: it is something else.
    """
    node = _read(text, _skip(text, 0), 0)
    if _skip(text, node.end) != len(text):
        raise _wrong(text, node.end, "something stands behind the end")
    if node.members is None:
        raise Refused("it is JSON, but not an object")
    return node


def _read(text: str, start: int, depth: int) -> _Node:
    if depth > _DEPTH:
        raise Refused("it is nested too deeply")
    if text[start : start + 1] == "{":
        return _object(text, start, depth)
    if text[start : start + 1] == "[":
        return _array(text, start, depth)
    try:
        value, end = _SCALARS.raw_decode(text, start)
    except ValueError:
        raise _wrong(text, start, "no value") from None
    return _Node(start, end, value)


def _object(text: str, start: int, depth: int) -> _Node:
    members: dict[str, tuple[int, _Node]] = {}
    position = _skip(text, start + 1)
    while text[position : position + 1] != "}":
        if text[position : position + 1] != '"':
            raise _wrong(text, position, "no key")
        key = _read(text, position, depth + 1)
        colon = _skip(text, key.end)
        if text[colon : colon + 1] != ":":
            raise _wrong(text, colon, "no colon")
        if key.value in members:
            raise _wrong(text, position, "a key for the second time")
        node = _read(text, _skip(text, colon + 1), depth + 1)
        members[key.value] = (position, node)
        position = _behind_comma(text, node.end, "}")
    value = {name: node.value for name, (_, node) in members.items()}
    return _Node(start, position + 1, value, members)


def _array(text: str, start: int, depth: int) -> _Node:
    values = []
    position = _skip(text, start + 1)
    while text[position : position + 1] != "]":
        node = _read(text, position, depth + 1)
        values.append(node.value)
        position = _behind_comma(text, node.end, "]")
    return _Node(start, position + 1, values)


def _behind_comma(text: str, position: int, closing: str) -> int:
    position = _skip(text, position)
    if text[position : position + 1] == ",":
        return _skip(text, position + 1)
    if text[position : position + 1] != closing:
        raise _wrong(text, position, "no comma")
    return position


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None  # it matches nothing, too
    return found.end()


def _wrong(text: str, position: int, what: str) -> Refused:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return Refused(f"it cannot be parsed as JSON: {what} at line {line} column {column}")
