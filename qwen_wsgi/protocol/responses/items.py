"""The input of a request as items: each as OpenAI stores it, references replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses.stored_form import stored_form
from qwen_wsgi.protocol.validation import wrong_type

REFERENCE: Final = "item_reference"

#: How OpenAI's ids of items begin.
_PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "web_search_call": "ws",
}


def kind_of(item: Mapping[str, Any], path: str) -> str:
    """An item's type; two kinds may be told without it.

    Raises:
        BadRequest: it has none, or no string for one.
    """
    kind = validation.text(item, "type", path)
    if kind is not None:
        return kind
    if "role" in item:
        return "message"
    if "id" in item:
        return REFERENCE
    raise validation.missing(path + "type")


def references(body: JsonObject) -> Iterator[str]:
    """The ids of items that the input only refers to; what is wrong with it is told later."""
    for item in objects(body.get("input")):
        if not isinstance(id := item.get("id"), str):
            continue
        if item.get("type") == REFERENCE or (item.get("type") is None and "role" not in item):
            yield id


def normalised(
    body: JsonObject, *, seed: str, known: set[str], stored: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The items of a request's `input`, in the form in which OpenAI stores them.

    Args:
        seed: what the ids are made from of items that have none.
        known: ids of items that stand in the conversation before: a reference to one says nothing.
        stored: items, by their ids, that a reference may stand for.

    Raises:
        BadRequest: `input` is missing, neither string nor array of objects, has an item without a
            type, or refers to an item that nobody has.
    """
    given = body.get("input")
    if given is None:
        raise validation.missing("input")
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise wrong_type("input", "a string or an array of objects", given)
    known = set(known)
    items = []
    for index, item in enumerate(given):
        path = f"input[{index}]"
        if not isinstance(item, dict):
            raise wrong_type(path, "an object", item)
        kind, id = kind_of(item, path + "."), validation.text(item, "id", path + ".")
        if kind == REFERENCE:
            if id not in known:
                items.append(_stored(id, path, stored))
                known.add(str(id))
            continue
        id = id or f"{_PREFIXES.get(kind, 'item')}_{seed}_in{index}"
        known.add(id)
        items.append(stored_form(item, kind, id))
    return items


def _stored(id: str | None, path: str, stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if id is None:
        raise validation.missing(path + ".id")
    if id not in stored:
        raise BadRequest(
            f"Item with id '{header_token(id)}' not found. Items are kept only of responses "
            "with 'store' true, and not for ever. Send the item itself, or leave the "
            "reference out.",
            param=path + ".id",
            code="item_not_found",
        )
    return stored_form(stored[id], str(stored[id].get("type") or "message"), id)
