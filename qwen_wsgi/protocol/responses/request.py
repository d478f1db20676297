"""Translates a request of the Responses API to chat; keeps what its answer needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import chat, validation
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.responses import compaction, items, parameters
from qwen_wsgi.protocol.responses.background import Background, asked_for
from qwen_wsgi.protocol.responses.conversation import ADDITIONAL_TOOLS, Conversation
from qwen_wsgi.protocol.responses.server_tools import image_tool, mcp_items, mcp_tool
from qwen_wsgi.protocol.responses.server_tools.image_tool import ImageOffer, ImageTool
from qwen_wsgi.protocol.responses.server_tools.mcp_tool import Approved
from qwen_wsgi.protocol.responses.tools import Names, Tools
from qwen_wsgi.protocol.server_tools.foreign import without_secrets
from qwen_wsgi.protocol.server_tools.offer import Offer, OfferedTool

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

#: The members of chat that others of this dialect are translated to.
_ORIGINS: Final = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}

#: Members of other dialects that change what an answer means: refused, because nothing here can
#: honour them.
_REFUSED: Final = ("container", "suffix", "thread")

#: Levels of nesting that are reserved, because answers are rendered from a deeper stack.
_SPARE_LEVELS: Final = 100


class Previous(NamedTuple):
    """What a request needs from the store of responses.

    Attributes:
        id: of the response whose conversation is continued, or None.
        store: store this response.
        references: ids of stored items to which the input refers.
    """

    id: str | None
    store: bool
    references: tuple[str, ...]


@dataclass(frozen=True)
class ResponsesRequest:
    """A checked request.

    Attributes:
        chat: the chat request.
        changed: what was changed or lost, as in `Changes.entries`.
        model: the client's name for the model, "" if it sent none.
        input_items: the request's own input, each item as OpenAI stores it, with its type and id.
        echo: the members of a response object that repeat the request.
        names: the tools' names in chat.
        packs_thinking: the client requested packed thinking (`content.pack_thinking`).
        sends_sources: the client requested the pages that a search found.
        summarizes: the answer is to be a summary of the conversation (`compaction`).
        image: the tool by which the model may have pictures made, so that the answer may have
            several turns, or None.
        runs_offered: the model may call tools of the operator, which the proxy runs.
        listed: those that the client is told first, by their labels.
        approved: calls of them that are to be carried out before the first turn.
        later_tools: those of the turns after the first one, where `tool_choice` left some of them
            out of that; None if they are the same.
        max_tool_calls: runs of tools by the proxy that the client allows, or None.
        background: the client does not wait for the answer; None if it does.
    """

    chat: ChatRequest
    changed: tuple[str, ...]
    model: str
    stream: bool
    store: bool
    previous_response_id: str | None
    input_items: list[dict[str, Any]]
    echo: Mapping[str, Any]
    names: Names
    packs_thinking: bool
    sends_sources: bool
    summarizes: bool = False
    image: ImageTool | None = None
    runs_offered: bool = False
    listed: Mapping[str, Sequence[OfferedTool]] = field(default_factory=dict)
    approved: Sequence[Approved] = ()
    later_tools: Sequence[dict[str, Any]] | None = None
    max_tool_calls: int | None = None
    background: Background | None = None

    @property
    def has_turns(self) -> bool:
        """Whether the answer may have several turns of the model."""
        return self.image is not None or self.runs_offered


def previous_of(body: JsonObject) -> Previous:
    """Read what must be looked up before `parse_request` is called.

    Raises:
        BadRequest: `previous_response_id` or `store` has a wrong type.
    """
    store = validation.flag(body, "store")
    return Previous(
        id=validation.text(body, "previous_response_id") or None,
        store=store is not False,
        references=tuple(items.references(body)),
    )


def parse_request(
    body: JsonObject,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    stored: Mapping[str, Mapping[str, Any]] = _NOTHING,
    seed: str = "",
    strict: bool = False,
    images: ImageOffer | None = None,
    offer: Offer | None = None,
) -> ResponsesRequest:
    """Check a request and translate it.

    Args:
        history: input and output items of the conversation up to `previous_response_id`, in order.
            Their instructions no longer apply (OpenAI's rule).
        stored: the items of `Previous.references`, by their ids.
        seed: for the ids of input items without one, `fc_<seed>_in3`: the response's id, without
            `resp_`.
        strict: refuse a request that would lose something.
        images: the model for the tool `image_generation`; None if there is none.
        offer: the operator's tools that the client may use; None if there are none.

    Raises:
        BadRequest: with OpenAI's `param` and `code`.
        ApiError: one of the operator's tools cannot be used, or not with this key.
    """
    try:
        changes = Changes(strict=strict)
        seed = seed.removeprefix("resp_")
        return _parsed(body, history, stored, seed, changes, images, offer)
    except RecursionError:
        raise _unwritable() from None


def _parsed(
    body: JsonObject,
    history: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Mapping[str, Any]],
    seed: str,
    changes: Changes,
    images: ImageOffer | None,
    offer: Offer | None,
) -> ResponsesRequest:
    previous = previous_of(body)
    _refuse(body)
    background = asked_for(body)
    history = compaction.shortened(history)
    known = {id for item in history if isinstance(id := item.get("id"), str)}
    own = items.normalized(body, seed=seed, known=known, stored=stored)
    all_items = [*history, *own]
    tools = Tools(_all_tools(body, all_items), changes, images, offer, all_items, seed)
    include = parameters.include_of(body)
    model = validation.text(body, "model") or ""
    stream = bool(validation.flag(body, "stream"))
    summarizes = compaction.requests_summary(own)
    offered = tools.names.offered()
    approved = [] if summarizes else mcp_tool.approved(history, own, offered)
    members: dict[str, Any] = {
        "messages": _messages(body, history, own, tools.names, changes),
        **tools.members(body.get("tool_choice")),
        **parameters.members_of(
            body, include, changes, runs_tools=tools.image is not None or bool(offered)
        ),
    }
    if summarizes:
        offered = {}
        for name in ("tools", "tool_choice", "response_format"):
            members.pop(name, None)
    if "tools" not in members:
        members.pop("parallel_tool_calls", None)
    if model:
        members["model"] = model
    image = _image(tools, members, all_items)
    runs_offered = bool(offered) and "tools" in members
    if stream or image is not None or runs_offered:  # turns are always read as streams
        members |= {"stream": True, "stream_options": {"include_usage": True}}
    if background is not None and background.half_price:
        members["service_tier"] = "flex"
    echo = _echo(body, previous, background)
    return ResponsesRequest(
        chat=_chat(members, [echo, own]),
        changed=changes.entries,
        model=model,
        stream=stream,
        store=previous.store,
        previous_response_id=previous.id,
        input_items=[_stored_item(each) for each in own],
        echo=echo,
        names=tools.names,
        packs_thinking=parameters.ENCRYPTED in include,
        sends_sources=parameters.SOURCES in include,
        summarizes=summarizes,
        image=image,
        runs_offered=runs_offered,
        listed=_listed(tools.listed, all_items) if runs_offered else {},
        approved=approved,
        later_tools=tools.later,
        max_tool_calls=body.get("max_tool_calls"),
        background=background,
    )


def _listed(
    listed: Mapping[str, list[OfferedTool]], all_items: Sequence[Mapping[str, Any]]
) -> dict[str, list[OfferedTool]]:
    """The tools that the client is told: those of servers that the conversation did not list."""
    known = {each.get("server_label") for each in all_items if each.get("type") == mcp_items.LIST}
    return {label: tools for label, tools in listed.items() if label not in known}


def _image(
    tools: Tools, members: Mapping[str, Any], all_items: Sequence[Mapping[str, Any]]
) -> ImageTool | None:
    """The tool that makes pictures, with those of the conversation; None if it was not offered.

    Raises:
        BadRequest: it may only change pictures, and there is none.
    """
    if tools.image is None or "tools" not in members:
        return None
    name = tools.names.of_server(image_tool.NAME)
    if all(tool.get("function", {}).get("name") != name for tool in members["tools"]):
        return None
    pictures = image_tool.pictures_of(all_items)
    if tools.image.action == "edit" and not pictures:
        raise BadRequest(
            "The tool 'image_generation' has the action 'edit', but the conversation has no "
            "picture. Send one as 'input_image', or use the action 'auto'.",
            param="tools",
            code="invalid_value",
        )
    return replace(tools.image, pictures=pictures)


def _messages(
    body: JsonObject,
    history: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
    names: Names,
    changes: Changes,
) -> list[dict[str, Any]]:
    """Translate the instructions, the history and the input to messages."""
    conversation = Conversation(names, changes)
    if instructions := validation.text(body, "instructions"):
        conversation.instruct(instructions)
    for index, item in enumerate(history):
        conversation.add(item, f"history[{index}].")
    for index, item in enumerate(own):
        conversation.add(item, f"input[{index}].")
    if compaction.requests_summary(own) and (history or len(own) > 1):
        conversation.say(compaction.PROMPT)
    messages = conversation.messages()
    if not messages:
        raise BadRequest(
            "Invalid 'input': it has no message that the model could answer.",
            param="input",
            code="empty_array",
        )
    return messages


def _chat(members: dict[str, Any], echoed: list[Any]) -> ChatRequest:
    """Parse the chat request; refuse it if it or the echo cannot be written as JSON."""
    for _ in range(_SPARE_LEVELS):
        echoed = [echoed]
    try:
        json.dumps(echoed, allow_nan=False)
        return chat.parse_request(JsonObject(compact(members).encode()), origins=_ORIGINS)
    except ValueError:
        raise _unwritable() from None


def _unwritable() -> BadRequest:
    """The refusal: Python reads 1e999 as infinity, and a few levels more than it writes."""
    return BadRequest(
        "The request is nested too deep, or has a number beyond the range of doubles.",
        code="invalid_json",
    )


def _refuse(body: JsonObject) -> None:
    """Refuse what would need another kind of answer."""
    if body.get("conversation") is not None:
        raise validation.unsupported(
            "conversation",
            "Conversations are not supported here. Use 'previous_response_id', or send the "
            "items of the conversation as 'input'.",
        )
    for name in _REFUSED:
        if body.get(name) is not None:
            raise validation.unsupported(
                name, f"'{name}' is not supported here: the answer would be another one without it."
            )
    if body.get("prompt") is not None:
        raise validation.unsupported(
            "prompt",
            "Prompt templates of OpenAI are not supported here. Send 'instructions' and 'input'.",
        )


def _all_tools(body: JsonObject, all_items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The request's tools, and those of items."""
    tools = list(validation.objects(body, "tools"))
    for item in all_items:
        if item.get("type") == ADDITIONAL_TOOLS:
            tools += validation.objects(item, "tools", f"{ADDITIONAL_TOOLS}.")
    return tools


# --- members that the response repeats ----------------------------------------------------------


def _echo(body: JsonObject, previous: Previous, background: Background | None) -> dict[str, Any]:
    """The members of a response object that repeat the request, with OpenAI's defaults.

    The host's defaults for temperature and top_p are unknown, so those stay null.
    """
    reasoning = body.get("reasoning") or {}
    text = body.get("text") or {}
    parallel = body.get("parallel_tool_calls")
    choice = body.get("tool_choice")
    echo = {
        "background": background is not None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": previous.id,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": body.get("service_tier") or "default",
        "store": previous.store,
        "temperature": body.get("temperature"),
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": "auto" if choice is None else choice,
        "tools": [_echoed_tool(tool) for tool in body.get("tools") or ()],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "user": body.get("user"),
    }
    return {name: value for name, value in echo.items() if value is not None or name in _NULLABLE}


def _stored_item(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") != ADDITIONAL_TOOLS:
        return item
    return {**item, "tools": [without_secrets(tool) for tool in item.get("tools") or ()]}


def _echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool for the response; OpenAI requires these members of a function, even null."""
    if tool.get("type") != "function":
        return without_secrets(tool)
    return {**tool, "parameters": tool.get("parameters"), "strict": tool.get("strict")}


#: OpenAI's schema requires these even when null; the others are shown as OpenAI does.
_NULLABLE: Final = frozenset(
    {
        *("instructions", "max_output_tokens", "max_tool_calls", "previous_response_id"),
        *("safety_identifier", "temperature", "top_p", "user"),
    }
)
