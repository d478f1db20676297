"""Shortens conversations: a summary by the model takes the place of all but the user's messages.

A client requests one by `POST /v1/responses/compact`, or by an item of type `compaction_trigger` at
the end of its input (Codex's `remote_compaction_v2`). The answer has an item of type `compaction`,
which the client sends back instead of the items before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses.content import pack, unpack

TRIGGER: Final = "compaction_trigger"
#: Both names are Codex's (0.171); OpenAI's schema has the first.
SUMMARIES: Final = ("compaction", "context_compaction")

#: Members of a request that would keep the model from writing a plain summary.
_DROPPED: Final = ("tools", "tool_choice", "parallel_tool_calls", "text", "max_output_tokens")

#: The last message to the model.
PROMPT: Final = """\
The conversation has become long. Write a summary with which another assistant, who sees nothing \
of it but the summary and the user's messages, can continue the work. Do not continue the work \
yourself.

Say, as far as there is something to say:
- what the user wants in the end, and what rules and wishes the user named;
- what was done, and what was found out: files with their paths, commands, errors, decisions and \
their reasons;
- what is under way at this moment, and what is still to be done, in order;
- names, values and short pieces of code or data without which the work cannot go on, word by word.

Write plain text, without a greeting."""

#: Before a summary that comes back.
_HEADING: Final = "[Summary of the conversation so far, without the user's own messages]\n\n"


def requests_summary(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the answer to a request with these items is to be a summary."""
    return bool(items) and items[-1].get("type") == TRIGGER


def triggered(body: JsonObject) -> JsonObject:
    """The request to `POST /v1/responses/compact`, as a request for a response."""
    given = body.get("input")
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    if given is None or isinstance(given, list):
        given = [*(given or ()), {"type": TRIGGER}]
    changes = {"input": given, "stream": False, "store": False}
    return JsonObject(body.render(changes, drop=_DROPPED))


def packed(summary: str) -> str:
    """The `encrypted_content` of a compaction: packed, not encrypted."""
    return pack({"summary": summary})


def message_of(item: Mapping[str, Any]) -> str | None:
    """The text by which the model gets a summary; None if it is another server's."""
    summary = unpack(item.get("encrypted_content"), "summary")
    return None if summary is None else _HEADING + summary


def shortened(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A stored conversation without what its last summary stands for."""
    items = list(history)
    last = max((at for at, item in enumerate(items) if item.get("type") in SUMMARIES), default=0)
    return [item for item in items[:last] if is_users(item)] + items[last:]


def is_users(item: Mapping[str, Any]) -> bool:
    """Whether an item is a message of the user."""
    return item.get("type") == "message" and item.get("role") == "user"


def compaction(response: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Render the answer to `POST /v1/responses/compact` from the response with the summary.

    Shape: `{"id", "object": "response.compaction", "created_at", "output", "usage"}`; the output is
    all messages of the user, and the compaction.
    """
    found = [item for item in objects(response["output"]) if item["type"] in SUMMARIES]
    return {
        "id": response["id"],
        "object": "response.compaction",
        "created_at": response["created_at"],
        "output": [*(item for item in kept if is_users(item)), *found],
        "usage": response["usage"],
    }


def has_summary(response: Mapping[str, Any]) -> bool:
    """Whether the model wrote one."""
    return any(item["type"] in SUMMARIES for item in objects(response["output"]))
