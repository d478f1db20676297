"""Reads the input of a request as items, each in the form in which OpenAI stores it.

Requests may leave members out or send another form: a text for a list of parts, no status, null for
a missing member. Only the form is changed here; invalid items are refused where they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import json_access, validation
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.responses import content
from qwen_wsgi.protocol.responses.server_tools import image_tool
from qwen_wsgi.protocol.translation.arguments import as_object_text
from qwen_wsgi.protocol.validation import wrong_type

REFERENCE: Final = "item_reference"

#: Prefixes of OpenAI's ids of items.
_PREFIXES: Final = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "web_search_call": "ws",
    image_tool.CALL: "ig",
    "compaction": "cmp",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "code_interpreter_call": "ci",
}

_COMPLETED: Final = "completed"
_STATUSES: Final = ("in_progress", _COMPLETED, "incomplete")
_SEARCH_STATUSES: Final = (*_STATUSES, "searching", "failed")
_TOOL_STATUSES: Final = (*_STATUSES, "calling", "interpreting", "failed")
_IMAGE_STATUSES: Final = ("in_progress", "generating", _COMPLETED, "failed")


def kind_of(item: Mapping[str, Any], path: str) -> str:
    """An item's type; messages and references may leave it out.

    Raises:
        BadRequest: it is missing or not a string.
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
    """The ids of items that the input only refers to; invalid items are ignored here."""
    for item in objects(body.get("input")):
        if not isinstance(id := item.get("id"), str):
            continue
        kind = item.get("type")
        if kind == REFERENCE or (kind is None and "role" not in item) or _is_bare_picture(item):
            yield id


def _is_bare_picture(item: Mapping[str, Any]) -> bool:
    """Whether an item names a picture that was made by its id alone, as OpenAI's guide does."""
    return item.get("type") == image_tool.CALL and not item.get("result")


def normalized(
    body: JsonObject, *, seed: str, known: set[str], stored: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Read the items of a request's `input`, in the form in which OpenAI stores them.

    Args:
        seed: for the ids of items without one.
        known: ids of items earlier in the conversation: a reference to one adds nothing.
        stored: items by their ids, for references.

    Raises:
        BadRequest: `input` is missing, neither string nor array of objects, has an item without a
            type, or refers to an item that is not stored.
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
        if _is_bare_picture(item):
            if id in known:
                continue
            item = stored.get(id or "", item)
        id = id or f"{_PREFIXES.get(kind, 'item')}_{seed}_in{index}"
        known.add(id)
        items.append(stored_form(item, kind, id))
    return items


def _stored(id: str | None, path: str, stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if id is None:
        raise validation.missing(path + ".id")
    if id not in stored:
        raise BadRequest(
            f"Item with id '{header_token(id)}' not found. Items are stored only for responses "
            "with 'store' true, and not for ever. Send the item itself, or leave the "
            "reference out.",
            param=path + ".id",
            code="item_not_found",
        )
    return stored_form(stored[id], str(stored[id].get("type") or "message"), id)


# --- the stored form ----------------------------------------------------------------------------


def stored_form(item: Mapping[str, Any], kind: str, id: str) -> dict[str, Any]:
    """An item with its type and id, as OpenAI stores it; unknown types are not changed."""
    named = {**item, "type": kind, "id": id}
    complete = _FORMS.get(kind)
    if complete is None:
        return named
    return complete({name: value for name, value in named.items() if value is not None})


def _message(item: dict[str, Any]) -> dict[str, Any]:
    form = _output_part if item.get("role") == "assistant" else _input_part
    given = item.get("content")
    if isinstance(given, str):
        given = [{"type": "text", "text": given}]
    if isinstance(given, list):
        item["content"] = [form(part) for part in given]
    return _with_status(item)


def _call(item: dict[str, Any]) -> dict[str, Any]:
    """A call; arguments that are no text, which some clients send, are rendered as one."""
    item["call_id"] = item.get("call_id") or item["id"]
    if item["type"] == "function_call" and not isinstance(item.get("arguments"), str):
        item["arguments"] = as_object_text(item.get("arguments"))
    elif item["type"] == "custom_tool_call" and not isinstance(item.get("input"), str):
        item["input"] = compact(item["input"]) if "input" in item else ""
    return _with_status(item)


def _output(item: dict[str, Any]) -> dict[str, Any]:
    if isinstance(given := item.get("output"), list):
        item["output"] = [_input_part(part) for part in given]
    return _with_status(item)


def _with_status(item: dict[str, Any], statuses: tuple[str, ...] = _STATUSES) -> dict[str, Any]:
    """Set the status to completed unless it is one that OpenAI has."""
    if item.get("status") not in statuses:
        item["status"] = _COMPLETED
    return item


def _reasoning(item: dict[str, Any]) -> dict[str, Any]:
    item["summary"] = _thoughts(item.get("summary"), "summary_text")
    if "content" in item:
        item["content"] = _thoughts(item["content"], "reasoning_text")
    if not isinstance(item.get("encrypted_content", ""), str):
        del item["encrypted_content"]
    return _with_status(item) if "status" in item else item


def _thoughts(given: Any, kind: str) -> list[dict[str, Any]]:
    return [
        {"type": kind, "text": part["text"]}
        for part in json_access.objects(given)
        if isinstance(part.get("text"), str)
    ]


def _search(item: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(item.get("action"), dict):
        item["action"] = {"type": "search", "query": ""}
    return _with_status(item, _SEARCH_STATUSES)


def _picture(item: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(item.setdefault("result", None), str):
        item["result"] = None
    return _with_status(item, _IMAGE_STATUSES)


def _tool_call(item: dict[str, Any]) -> dict[str, Any]:
    """A call of one of the operator's tools: a client may show null where there is nothing."""
    if item["type"] == "code_interpreter_call":
        item.setdefault("outputs", None)
    elif not isinstance(item.get("arguments"), str):
        item["arguments"] = as_object_text(item.get("arguments"))
    return _with_status(item, _TOOL_STATUSES)


_FORMS: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _call,
    "custom_tool_call_output": _output,
    "web_search_call": _search,
    image_tool.CALL: _picture,
    "mcp_call": _tool_call,
    "code_interpreter_call": _tool_call,
}


# --- parts ----------------------------------------------------------------------------------------


def _input_part(part: Any) -> Any:
    """A part of the model's input."""
    if (text := _text_of(part)) is not None:
        return {"type": "input_text", "text": text}
    if isinstance(part, dict) and part.get("type") == "input_image":
        return _image(part)
    return part


def _output_part(part: Any) -> Any:
    """A part of the model's output."""
    text = _text_of(part)
    if text is None or part["type"] == "refusal":
        return part
    lists = {name: json_access.items(part.get(name)) for name in ("annotations", "logprobs")}
    return {"type": "output_text", "text": text, **lists}


def _text_of(part: Any) -> str | None:
    """The text of a part; None if it has none."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal":
        text = part.get("refusal")
    else:
        text = part.get("text") if kind in content.TEXTS else None
    return text if isinstance(text, str) else None


def _image(part: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in part.items() if value is not None}
    url = shown.get("image_url")
    if isinstance(url, dict) and isinstance(url.get("url"), str):
        shown["image_url"] = url["url"]  # chat's form
    detail = shown.setdefault("detail", "auto")
    if isinstance(detail, str) and detail not in content.DETAILS:
        shown["detail"] = "auto"
    return shown
