"""Assembles tool calls from the fragments of a stream.

A fragment is `{"index", "id", "type", "function": {"name", "arguments"}}`. OpenAI sends id, type
and name once, then arguments under the same index. Hosts of Qwen models also send: ids that are
empty or repeated, repeated names, several calls under one index, no index, no id, an id that comes
late, and a finished call once more (qwen-code has code for each). DeepSeek and GLM also give one id
to several calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import AnswerTooLarge
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.answer_text import ITEM_BYTES, AnswerSize, Text
from qwen_wsgi.protocol.chat.arguments import Arguments
from qwen_wsgi.protocol.json_object import compact

#: Tool calls of one choice.
MOST_CALLS: Final = 1024

#: Ids and names of the calls of one choice, in characters.
_MOST_NAMES: Final = 512 * 1024

#: Choices of one answer; OpenAI allows as many.
MOST_CHOICES: Final = 128

#: `function` and `custom` are the types that there are.
_LONGEST_TYPE: Final = 64

#: The arguments of a call that has none: clients parse them, and OpenAI's models write this.
NO_ARGUMENTS: Final = "{}"


@dataclass(slots=True, eq=False)
class ToolCall:
    """One call while it grows.

    Attributes:
        number: how many calls began before it.
        place: the index that its upstream gave it, if no other call has that; else the number.
        id: as the upstream sent it, or "". If another call has it already, one of its own.
        given: the id as the upstream sent it, or "".
        index: the index that its upstream gave it, or None.
        arguments: what is known of its arguments; `WholeCalls` has their text.
    """

    number: int
    place: int
    id: str = ""
    type: str = "function"
    name: str = ""
    given: str = ""
    index: int | None = None
    arguments: Arguments = field(default_factory=Arguments)

    @property
    def empty(self) -> bool:
        """Whether there are no arguments so far, not even an empty object."""
        return self.arguments.empty

    @property
    def complete(self) -> bool:
        """Whether the arguments so far are a complete object."""
        return self.arguments.complete


class Taken(NamedTuple):
    """How a fragment was assigned.

    Attributes:
        call: the call it belongs to.
        begins: it is the first of its call.
        names: it has the call's name.
        goes_on: it has only arguments, and another one like it belongs to the same call.
    """

    call: ToolCall
    begins: bool
    names: bool
    goes_on: bool


class ToolCalls:
    """Assigns the fragments of one choice to its calls. Keeps no arguments."""

    def __init__(self) -> None:
        self._calls: list[ToolCall] = []
        self._places: set[int] = set()
        self._by_id: dict[str, ToolCall] = {}
        self._by_index: dict[int, ToolCall] = {}
        self._latest: ToolCall | None = None
        self._names_left = _MOST_NAMES

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, fragment: Mapping[str, Any]) -> Taken | None:
        """Add a fragment to its call; None if it only repeats a complete call."""
        index, function = fragment.get("index"), fragment.get("function")
        index = index if isinstance(index, int) else None
        function = function if isinstance(function, dict) else {}
        id, name = json_access.text(fragment.get("id")), json_access.text(function.get("name"))
        arguments = arguments_of(function)
        call = self._same(index, id, name) if id else None
        if call is None:
            call = self._meant(index, id, name, arguments)
        elif name and arguments.strip() and call.complete:
            if call.arguments.equal(arguments):
                return None
            call = None
        begins = call is None
        if call is None:
            call = self._begin(index)
        names = bool(name and not call.name)
        self._fill(call, id, name, json_access.text(fragment.get("type")))
        if arguments:
            call.arguments.add(arguments)
        if index is not None and self._by_index.get(index) is not call:
            if len(self._by_index) >= MOST_CALLS and index not in self._by_index:
                raise AnswerTooLarge(f"has more than {MOST_CALLS} indexes of tool calls")
            self._by_index[index] = call
        self._latest = call
        goes_on = bool(arguments) and not begins and not name and id in ("", call.given)
        return Taken(call, begins, names, goes_on)

    def _same(self, index: int | None, id: str, name: str) -> ToolCall | None:
        """The call with this id; None if there is none, or a second one begins that shares it.

        A name begins a call, so with another name, or under another index, it is another call.
        """
        call = self._by_index.get(index) if index is not None else None
        if call is None or call.given != id:
            call = self._by_id.get(id)
        if call is None or not name:
            return call
        if call.name and name != call.name:
            return None
        return None if None not in (index, call.index) and index != call.index else call

    def _meant(self, index: int | None, id: str, name: str, arguments: str) -> ToolCall | None:
        """The call that a fragment without a known id belongs to; None if it begins a new one."""
        call = self._latest if index is None else self._by_index.get(index)
        if call is None and not id and not name:
            call = self._latest  # a call begins with an id or a name, whatever the index says
        if call is None or _begins_another(call, id, name, arguments):
            return None
        return call

    def _begin(self, index: int | None) -> ToolCall:
        number = len(self._calls)
        if number >= MOST_CALLS:
            raise AnswerTooLarge(f"has more than {MOST_CALLS} tool calls")
        place = number if index is None or index in self._places else index
        call = ToolCall(number, place, index=index)
        self._calls.append(call)
        self._places.add(place)
        return call

    def _fill(self, call: ToolCall, id: str, name: str, type: str) -> None:
        """Set id, name and type once; some hosts send a new id in every fragment.

        A call that shares the id of another one gets its own, made of that: so it is the same one
        in a stream, in a whole answer and in every dialect.
        """
        if (name and not call.name) or (id and not call.id):
            self._names_left -= len(name) + len(id)
            if self._names_left < 0:
                raise AnswerTooLarge("has tool calls with ids and names that do not end")
        call.name = call.name or name
        call.type = type[:_LONGEST_TYPE] or call.type
        if id and not call.id:
            call.given = id
            call.id = made_up_id(id, call.number) if id in self._by_id else id
            self._by_id[id] = call

    def empty(self) -> list[ToolCall]:
        """The calls that have no arguments so far."""
        return [call for call in self._calls if call.empty]


class WholeCalls(ToolCalls):
    """Assembles the calls of one choice with their arguments.

    Args:
        size: they count against it.
    """

    def __init__(self, size: AnswerSize) -> None:
        super().__init__()
        self._size = size
        self._texts: list[Text] = []

    def take(self, fragment: Mapping[str, Any]) -> Taken | None:
        taken = super().take(fragment)
        if taken is None:
            return None
        if taken.begins:
            self._size.add(ITEM_BYTES)
            self._texts.append(Text(self._size))
        function = fragment.get("function")
        if isinstance(function, dict) and (arguments := arguments_of(function)):
            self._texts[taken.call.number].add(arguments)
        return taken

    def render(self, seed: str, *, truncated: bool = False) -> list[dict[str, Any]]:
        """Render the calls as in a whole message, in the order of their indexes.

        Args:
            seed: for the ids of calls without one.
            truncated: the answer was cut; else a call without arguments has an empty object.
        """
        return [
            {
                "id": call.id or made_up_id(seed, call.number),
                "type": call.type,
                "function": {
                    "name": call.name,
                    "arguments": NO_ARGUMENTS
                    if call.empty and not truncated
                    else str(self._texts[call.number]),
                },
            }
            for call in sorted(self._calls, key=lambda call: (call.place, call.number))
        ]


def _begins_another(call: ToolCall, id: str, name: str, arguments: str) -> bool:
    """Whether a fragment under a call's index, with a new id or none, begins another call.

    A call is over when its arguments are a complete object and more arguments come. A late id fits
    a call without one; a new id without a name was generated for each fragment.
    """
    if name and call.name and (name != call.name or (id and call.id)):
        return True
    return bool((id or name) and arguments.strip() and call.complete)


def arguments_of(function: Mapping[str, Any]) -> str:
    """The arguments of a fragment as text: "" for null, JSON for an object."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else compact(arguments)


def made_up_id(seed: str, number: int) -> str:
    """Make an id for a call without one, always the same for the same answer and call."""
    return "call_" + hashlib.sha256(f"{seed}/{number}".encode(errors="replace")).hexdigest()[:24]
