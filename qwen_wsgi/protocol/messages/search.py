"""Answers a forced web search that the model does not have, or that its host refuses.

Anthropic reports this inside a message. Claude Code then shows that the search failed; after an
answer without a search it would show the model's inventions as results.
"""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.messages.answer import head, usage_of

#: The code of the refusals (`upstream.adapt.tools`, `upstream.failures`) that are answered so.
UNAVAILABLE: Final = "web_search_unavailable"


def whole(*, id: str, model: str) -> dict[str, Any]:
    """The message: a search, and `web_search_tool_result_error` as its result."""
    call = "srvtoolu_" + id.removeprefix("msg_")
    result = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    return {
        **head(id, model),
        "content": [
            {"type": "server_tool_use", "id": call, "name": "web_search", "input": {}},
            {"type": "web_search_tool_result", "tool_use_id": call, "content": result},
        ],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 0, **usage_of(None)},
    }


def events(*, id: str, model: str) -> bytes:
    """The same message as a stream of events."""
    message = whole(id=id, model=model)
    values: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}}
    ]
    for index, block in enumerate(message["content"]):
        values.append({"type": "content_block_start", "index": index, "content_block": block})
        values.append({"type": "content_block_stop", "index": index})
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    values.append({"type": "message_delta", "delta": stop, "usage": message["usage"]})
    values.append({"type": "message_stop"})
    return b"".join(
        b"event: " + value["type"].encode() + b"\n" + sse.render(value) for value in values
    )
