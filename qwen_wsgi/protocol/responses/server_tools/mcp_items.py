"""The items of the operator's tools that come back in a request, as the model is told them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.protocol.json_access import objects, text
from qwen_wsgi.protocol.server_tools.results import Told, arguments_in, for_model, pictures_note

CALL: Final = "mcp_call"
APPROVAL: Final = "mcp_approval_request"
ANSWER: Final = "mcp_approval_response"
LIST: Final = "mcp_list_tools"
CODE: Final = "code_interpreter_call"

FAILED: Final = "failed"


def output_of(item: Mapping[str, Any]) -> str | None:
    """What the model is told of an earlier `mcp_call`; None if it has no result."""
    if isinstance(output := item.get("output"), str):
        return output
    error = item.get("error")
    if isinstance(error, str):
        return for_model(Told(error, error=True))
    if not isinstance(error, dict):
        return None
    message = text(error.get("message"))
    said = "\n".join(text(part.get("text")) for part in objects(error.get("content")))
    return for_model(Told(message or said, error=True))


def logs_of(item: Mapping[str, Any]) -> str | None:
    """What the model is told of an earlier run of code; None if it has no result."""
    outputs = item.get("outputs")
    if not isinstance(outputs, list):
        return None
    logs = [text(each.get("logs")) for each in objects(outputs) if each.get("type") == "logs"]
    pictures = sum(each.get("type") == "image" for each in objects(outputs))
    told = Told("\n".join(logs), item.get("status") == FAILED)
    shown = for_model(told) if logs or not pictures else ""
    return shown + pictures_note(pictures)


def code_arguments(item: Mapping[str, Any]) -> str:
    """The arguments of an earlier run of code."""
    return json.dumps({"code": text(item.get("code"))}, ensure_ascii=False)


def valid_arguments(item: Mapping[str, Any]) -> str:
    """The arguments of an earlier call, as chat has them: an object."""
    given = text(item.get("arguments"))
    return given if arguments_in(given) else "{}"


def container_in(items: Sequence[Mapping[str, Any]]) -> str | None:
    """The container of the latest run of code, which the next one goes on with."""
    for item in reversed(items):
        if item.get("type") == CODE and (id := text(item.get("container_id"))):
            return id
    return None
