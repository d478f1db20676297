"""Translates a conversation of Anthropic's form to chat messages.

There, a user's message has the results of tools beside the user's text, and successive messages of
one role are one turn. In chat, each result is a message of its own, directly after the calls and in
their order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.messages import server_tools
from qwen_wsgi.protocol.messages.blocks import (
    Block,
    Part,
    blocks_of,
    drop_block,
    is_marked,
    mark,
    parts_of,
    text_of,
)
from qwen_wsgi.protocol.messages.validation import below, invalid, need, want, wrong
from qwen_wsgi.protocol.server_tools.functions import Functions
from qwen_wsgi.protocol.translation.arguments import as_object_text

Message = dict[str, Any]

#: The answer to a call without a result: the user interrupted the turn.
UNANSWERED: Final = "[This call has no result: it was interrupted before it could be answered.]"
FAILED: Final = "The tool failed:\n"
#: What the model is told where a client sends back an answer that was paused (`pause_turn`).
GO_ON: Final = "Go on."

#: The start of the text by which Anthropic bills Claude Code. It changes with every call, which
#: would make a prompt cache useless, and models do not need it.
_BILLING: Final = "x-anthropic-billing-header:"


class _Turn(NamedTuple):
    role: str
    blocks: list[Block]


def system_of(system: Any, changes: Changes) -> Iterator[Message]:
    """Translate the member `system` to a message; to none if it is empty.

    Raises:
        BadRequest: it is neither a string nor a list of texts.
    """
    parts = []
    for block in blocks_of(system, "system"):
        if block.kind != "text":
            raise invalid(block.path, "Input should be a text")
        text = need(block.value, "text", str, block.path)
        if text.startswith(_BILLING):
            changes.note("system", "billing-text-dropped")
            text = text.partition("\n")[2].lstrip()
        if text:
            parts.append({"type": "text", "text": text, **mark(block.value)})
    if parts:
        yield {"role": "system", "content": _simplest(parts)}


def messages_of(
    messages: list[Any], changes: Changes, named: Functions | None = None
) -> Iterator[Message]:
    """Translate the member `messages`.

    Args:
        named: the functions of the operator's tools; None for none.

    Raises:
        BadRequest: a message is invalid, or a result does not belong to a call.
    """
    waiting: dict[str, None] = {}
    named = named or Functions()
    turns = _turns(messages)
    for turn in turns:
        if turn.role == "user":
            yield from _user(turn, waiting, changes)
            waiting = {}
        else:
            said, waiting = _assistant(turn, changes, named)
            if said and turn is turns[-1] and not waiting and said[-1]["role"] == "assistant":
                if len(said) == 1:
                    said[0]["partial"] = True  # to be continued (Model Studio's partial mode)
                else:  # an answer that was paused after tools: their limit was its last word
                    said.append({"role": "user", "content": GO_ON})
            yield from said
    yield from map(_unanswered, waiting)


def _turns(messages: list[Any]) -> list[_Turn]:
    turns: list[_Turn] = []
    for index, message in enumerate(messages):
        path = below("messages", index)
        if not isinstance(message, dict):
            raise wrong(path, "an object")
        role = need(message, "role", str, path)
        if role not in ("user", "assistant", "system"):
            raise wrong(below(path, "role"), "'user' or 'assistant'")
        if message.get("content") is None:
            need(message, "content", str, path)
        blocks = blocks_of(message["content"], below(path, "content"))
        if role == "system":
            role, blocks = "user", [_reminder(block) for block in blocks]
        if turns and turns[-1].role == role:
            turns[-1].blocks.extend(blocks)
        else:
            turns.append(_Turn(role, blocks))
    return turns


def _reminder(block: Block) -> Block:
    """Tag a system text inside the conversation, which becomes a part of a user's message.

    Qwen's templates take a system message only at the beginning. Claude Code uses this tag for such
    texts in messages of the user.
    """
    text = block.value.get("text")
    if block.kind != "text" or not isinstance(text, str) or text.startswith("<system-reminder>"):
        return block
    tagged = f"<system-reminder>\n{text}\n</system-reminder>"
    return block._replace(value={**block.value, "text": tagged})


# --- the user -----------------------------------------------------------------------------------


def _user(turn: _Turn, waiting: Collection[str], changes: Changes) -> Iterator[Message]:
    """Translate a user's turn: the results of the waiting calls, then the user's message."""
    results: dict[str, Message] = {}
    shown: list[Part] = []
    texts: list[Block] = []
    for block in turn.blocks:
        if block.kind != "tool_result":
            texts.append(block)
            continue
        id = need(block.value, "tool_use_id", str, block.path)
        if id not in waiting or id in results:
            raise invalid(
                block.path,
                f"unexpected `tool_use_id` found in `tool_result` blocks: {id[:128]}. The message "
                "before must have one `tool_use` of that id for each result",
            )
        results[id], images = _result(id, block, changes)
        shown += images
    for id in waiting:
        yield results.get(id) or _unanswered(id)
    if parts := [*shown, *parts_of(texts, changes)]:
        yield {"role": "user", "content": _simplest(parts)}


def _result(id: str, block: Block, changes: Changes) -> tuple[Message, list[Part]]:
    """The message of a result, and its images, which chat takes only from the user."""
    blocks = blocks_of(block.value.get("content"), below(block.path, "content"))
    parts = list(parts_of(blocks, changes))
    images = [part for part in parts if part["type"] != "text"]
    text = text_of(parts, "\n")
    if want(block.value, "is_error", bool, block.path):
        text = FAILED + text
    if images:
        count = f"{len(images)} image{'s' * (len(images) > 1)}"
        text = f"{text}\n[{count}: see the next message of the user]".lstrip("\n")
        images.insert(0, {"type": "text", "text": f"[{count} from the result of call {id}]"})
    content: Any = text
    if text and (block.value.get("cache_control") or is_marked(parts)):
        content = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]
    return {"role": "tool", "tool_call_id": id, "content": content}, images


def _unanswered(id: str) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": UNANSWERED}


def _simplest(parts: list[Part]) -> Any:
    """Replace a single text by a string, which every host and template takes."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return parts[0]["text"]
    return parts


# --- the assistant ------------------------------------------------------------------------------


def _assistant(
    turn: _Turn, changes: Changes, named: Functions
) -> tuple[list[Message], dict[str, None]]:
    """Translate an assistant's turn: its messages, with the results of tools that the server has
    run between them, and the ids of the last one's other calls in order (a dictionary, in which a
    result's call is found at once)."""
    messages: list[Message] = []
    ids: dict[str, None] = {}
    for blocks in _parts(turn.blocks):
        message, ids, results = _part(blocks, changes, named)
        if message is not None:
            messages += [message, *results]
    return messages, ids


def _parts(blocks: list[Block]) -> Iterator[list[Block]]:
    """Divide a turn behind the results of tools that the server has run."""
    part: list[Block] = []
    for block in blocks:
        ends = bool(part) and part[-1].kind in server_tools.RESULTS
        calls = any(each.kind == "tool_use" for each in part)  # the client's results come later
        if ends and not calls and block.kind not in server_tools.RESULTS:
            yield part
            part = []
        part.append(block)
    yield part


def _part(
    blocks: list[Block], changes: Changes, named: Functions
) -> tuple[Message | None, dict[str, None], list[Message]]:
    """Translate a part of a turn: its message, or None if it is empty, the ids of the client's
    calls, and the messages with the results of the server's tools."""
    texts: list[Block] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    own: dict[str, str] = {}
    for block in blocks:
        if block.kind == "text":
            texts.append(block)
        elif block.kind == "thinking":
            thoughts.append(need(block.value, "thinking", str, block.path))
        elif block.kind == "redacted_thinking":
            changes.note("messages", "redacted_thinking-dropped")
        elif block.kind == "tool_use":
            calls.append(_call(block, changes))
        elif block.kind in server_tools.USES and (call := server_tools.past_call(block, named)):
            calls.append(call)
            own[call["id"]] = UNANSWERED
        elif block.kind in server_tools.RESULTS:
            id, result = server_tools.past_result(block)
            if id in own:
                own[id] = result
            else:
                drop_block(block, changes)
        else:
            drop_block(block, changes)
    ids = dict.fromkeys(call["id"] for call in calls)
    if len(ids) < len(calls):
        raise invalid(blocks[0].path, "`tool_use` ids must be unique")
    parts = list(parts_of(texts, changes))
    # Text blocks are one text that other blocks divided, so they are joined without a separator.
    message: Message = {
        "role": "assistant",
        "content": parts if is_marked(parts) else text_of(parts, ""),
    }
    if thinking := "".join(thoughts):
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    results = [
        {"role": "tool", "tool_call_id": id, "content": result} for id, result in own.items()
    ]
    others = {id: None for id in ids if id not in own}
    return (message if parts or thinking or calls else None), others, results


def _call(block: Block, changes: Changes) -> dict[str, Any]:
    name = need(block.value, "name", str, block.path)
    given = block.value.get("input")
    if not isinstance(given, dict):
        changes.note("messages", "input-made-object")
    return {
        "id": need(block.value, "id", str, block.path),
        "type": "function",
        "function": {"name": name, "arguments": as_object_text(given)},
    }
