"""Items in the form in which OpenAI stores them, and tells them of a stored response.

Requests may say less, or the same otherwise: a text for a list of parts, no status, null for what
is not there. This is about form only; what makes no sense stays, and is refused where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.responses import content

_COMPLETED: Final = "completed"
_STATUSES: Final = ("in_progress", _COMPLETED, "incomplete")
_SEARCH_STATUSES: Final = (*_STATUSES, "searching", "failed")


def stored_form(item: Mapping[str, Any], kind: str, id: str) -> dict[str, Any]:
    """An item with its type and id, as OpenAI stores it; kinds that we do not read stay as they
    are."""
    named = {**item, "type": kind, "id": id}
    complete = _FORMS.get(kind)
    if complete is None:
        return named
    return complete({name: value for name, value in named.items() if value is not None})


def _message(item: dict[str, Any]) -> dict[str, Any]:
    said = _said if item.get("role") == "assistant" else _given
    given = item.get("content")
    if isinstance(given, str):
        given = [{"type": "text", "text": given}]
    if isinstance(given, list):
        item["content"] = [said(part) for part in given]
    return _with_status(item)


def _call(item: dict[str, Any]) -> dict[str, Any]:
    item["call_id"] = item.get("call_id") or item["id"]
    return _with_status(item)


def _output(item: dict[str, Any]) -> dict[str, Any]:
    if isinstance(given := item.get("output"), list):
        item["output"] = [_given(part) for part in given]
    return _with_status(item)


def _with_status(item: dict[str, Any], statuses: tuple[str, ...] = _STATUSES) -> dict[str, Any]:
    """An item whose status is one that OpenAI has."""
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


_FORMS: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _call,
    "function_call_output": _output,
    "custom_tool_call": _call,
    "custom_tool_call_output": _output,
    "web_search_call": _search,
}


# --- parts ----------------------------------------------------------------------------------------


def _given(part: Any) -> Any:
    """A part of what the model is given."""
    if (text := _text_of(part)) is not None:
        return {"type": "input_text", "text": text}
    if isinstance(part, dict) and part.get("type") == "input_image":
        return _image(part)
    return part


def _said(part: Any) -> Any:
    """A part of what the model said."""
    text = _text_of(part)
    if text is None or part["type"] == "refusal":
        return part
    lists = {name: json_access.items(part.get(name)) for name in ("annotations", "logprobs")}
    return {"type": "output_text", "text": text, **lists}


def _text_of(part: Any) -> str | None:
    """The text of a part that holds one."""
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
