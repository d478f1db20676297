"""Takes out of a translated request what only Qwen's hosts know, for any other server."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.upstream.adapt import tools
from qwen_wsgi.upstream.adapt.draft import Draft

Message = dict[str, Any]

#: Qwen's members that translations make up; those that the client itself sent stay.
_OWN: Final = ("enable_thinking", "thinking_budget")


def adapt(draft: Draft) -> None:
    """Make a request of Messages or Responses a plain chat request of OpenAI's form.

    Its client did not choose Qwen's extensions, and strict servers refuse members that they do not
    know. A request that its client sent as chat stays as it is.
    """
    if not draft.translated:
        return
    for name in _OWN:
        if name in draft.origins and draft.has(name):
            draft.lose(name, f"has no standard parameter for {draft.origins[name]}")
            draft.leave_out(name)
    _messages(draft)
    tools.refuse_forced_search(draft)
    _tools(draft)


def _messages(draft: Draft) -> None:
    messages = draft.get("messages")
    plain = [_plain(message) for message in messages]
    if any(new is not old for new, old in zip(plain, messages, strict=True)):
        draft.put("messages", plain, "qwen-marks-dropped")


def _plain(message: Message) -> Message:
    content = message.get("content")
    marked = isinstance(content, list) and any("cache_control" in each for each in content)
    if not marked and "partial" not in message:
        return message
    kept = {name: value for name, value in message.items() if name != "partial"}
    if marked and isinstance(content, list):
        kept["content"] = [_unmarked(part) for part in content]
    return kept


def _tools(draft: Draft) -> None:
    given = json_access.items(draft.get("tools"))
    kept = [_unmarked(tool) for tool in given if tool["type"] == "function"]
    if kept == given:
        return
    if len(kept) < len(given):
        draft.lose("tools", "has no built-in web search")
    what = "built-in-dropped" if len(kept) < len(given) else "cache_control-dropped"
    if kept:
        draft.put("tools", kept, what)
        return
    draft.leave_out("tools", what)
    for name in ("tool_choice", "parallel_tool_calls"):
        draft.leave_out(name, "no-tools")


def _unmarked(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "cache_control"}
