"""Renders a whole answer as a message, and the parts that streamed answers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.chat.normalize import finish_reason
from qwen_wsgi.protocol.chat.tool_calls import arguments_of, made_up_id
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.messages.request import MessagesRequest
from qwen_wsgi.protocol.translation import citations, search
from qwen_wsgi.protocol.translation.search import Page
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.protocol.usage import parse as parse_usage

#: The signature of thinking blocks, which clients require and keep. It only marks the thinking as
#: this proxy's; Anthropic's servers would refuse it.
SIGNATURE: Final = "qwen-proxy"

_REASONS: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}

#: Of the usage of an answer for which the host searched.
ONE_SEARCH: Final = {"server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0}}

#: Members of a delta or message with thinking: Qwen's name, and vLLM's.
THINKING: Final = ("reasoning_content", "reasoning")


def whole(request: MessagesRequest, completion: Mapping[str, Any], *, id: str) -> dict[str, Any]:
    """Render a `chat.completion` as Anthropic's message.

    Shape: `{"id", "type": "message", "role": "assistant", "model", "content": [...],
    "stop_reason", "stop_sequence", "usage"}`; `content` is empty if the completion is.
    """
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    choice = first if isinstance(first, dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    found: list[dict[str, Any]] = []
    sources: citations.Sources | None = None
    if request.searches:
        found = search_blocks(completion, message, id)
        sources = citations.Sources()
        sources.take(completion, message)
    content = found + list(_content(message, id, sources))
    called = any(block["type"] == "tool_use" for block in content)
    finish = finish_reason(choice.get("finish_reason"), called=called)
    model = request.chat.model or completion.get("model")
    return {
        **head(id, model if isinstance(model, str) else ""),
        "content": content,
        **stop_of(finish, choice.get("stop_reason"), stops=request.stops, called=called),
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            **usage_of(parse_usage(completion.get("usage"))),
            **(ONE_SEARCH if found else {}),
        },
    }


def search_blocks(
    holder: Mapping[str, Any], inner: Mapping[str, Any], id: str
) -> list[dict[str, Any]]:
    """Render a search by the host as Anthropic's two blocks; none if nothing is said of one.

    Its query is not known.

    Args:
        holder, inner: as for `search.pages_of`.
        id: of the message.
    """
    pages = search.pages_of(holder, inner)
    if pages is None:
        return []
    call = "srvtoolu_" + id.removeprefix("msg_")
    results = [
        {
            "type": "web_search_result",
            "url": page.url,
            "title": page.title,
            "encrypted_content": "",
            "page_age": None,
        }
        for page in pages
    ]
    return [
        {"type": "server_tool_use", "id": call, "name": "web_search", "input": {"query": ""}},
        {"type": "web_search_tool_result", "tool_use_id": call, "content": results},
    ]


def citation_of(page: Page) -> dict[str, Any]:
    """Render a page that a text names.

    Clients' types require all members. What of the page is meant, and Anthropic's token for it, are
    not known, so those are empty.
    """
    return {
        "type": "web_search_result_location",
        "cited_text": "",
        "url": page.url,
        "title": page.title,
        "encrypted_index": "",
    }


def head(id: str, model: str) -> dict[str, Any]:
    """The first members of a message; `content` and `usage` follow later."""
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def stop_of(
    finish: str | None, matched: Any, *, stops: Sequence[str], called: bool
) -> dict[str, str | None]:
    """Why an answer ended: `{"stop_reason", "stop_sequence"}`.

    Args:
        finish: chat's finish reason.
        matched: the choice's `stop_reason`, in which vLLM reports the matched stop sequence.
        stops: the client's stop sequences.
        called: the answer has tool calls.
    """
    if finish == "stop" and isinstance(matched, str) and matched in stops:
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    reason = _REASONS.get(finish or "stop", "end_turn")
    if reason == "tool_use" and not called:
        reason = "end_turn"  # an agent would wait for a call
    return {"stop_reason": reason, "stop_sequence": None}


def usage_of(usage: Usage | None) -> dict[str, Any]:
    """Anthropic's counts that are known; `output_tokens` is always there.

    Shape: `{"input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
    "output_tokens", "output_tokens_details": {"thinking_tokens"}}`. Tokens read
    from or written to a cache are not part of `input_tokens`.
    """
    if usage is None:
        return {"output_tokens": 0}
    counts: dict[str, Any] = {"output_tokens": usage.completion or 0}
    if usage.prompt is not None:
        cached, written = usage.cached or 0, usage.cache_written or 0
        counts["input_tokens"] = max(0, usage.prompt - cached - written)
        counts["cache_creation_input_tokens"] = written
        counts["cache_read_input_tokens"] = cached
    if usage.reasoning:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return counts


def _content(
    message: Mapping[str, Any], seed: str, sources: citations.Sources | None
) -> Iterator[dict[str, Any]]:
    thinking = next(
        (text for name in THINKING if (text := json_access.text(message.get(name)))), ""
    )
    if thinking:
        yield {"type": "thinking", "thinking": thinking, "signature": SIGNATURE}
    if text := json_access.text(message.get("content")) or json_access.text(message.get("refusal")):
        yield from _texts(text, sources, message.get("annotations"))
    for number, call in enumerate(json_access.items(message.get("tool_calls"))):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and (name := json_access.text(function.get("name"))):
            yield {
                "type": "tool_use",
                "id": json_access.text(call.get("id")) or made_up_id(seed, number),
                "name": name,
                "input": input_of(arguments_of(function)),
            }


def _texts(
    text: str, sources: citations.Sources | None, annotations: Any
) -> Iterator[dict[str, Any]]:
    """Render a text: in blocks that end behind the marks of pages, as streams have them."""
    cut = list(_cut(text, sources)) if sources is not None else [(text, [])]
    pages = [each.page for each in citations.given(annotations)]
    if pages and not any(named for _, named in cut):
        cut[-1] = (cut[-1][0], list(dict.fromkeys(pages)))
    for piece, named in cut:
        block: dict[str, Any] = {"type": "text", "text": piece}
        if named:
            block["citations"] = [citation_of(page) for page in named]
        yield block


def _cut(text: str, sources: citations.Sources) -> Iterator[tuple[str, list[Page]]]:
    reader = citations.MarkReader()
    pieces: list[str] = []
    numbers: list[int] = []
    for examined in (reader.feed(text), reader.flush()):
        for piece, number in examined.cut():
            if number is None and not piece.isspace() and sources.knows(numbers):
                yield "".join(pieces), sources.named(numbers)
                pieces, numbers = [], []
            pieces.append(piece)
            if number is not None:
                numbers.append(number)
    yield "".join(pieces), sources.named(numbers)


def input_of(arguments: str) -> dict[str, Any]:
    """Parse the arguments; anything but an object is wrapped, so that the tool can report it."""
    if not arguments.strip():
        return {}
    try:
        read = JsonObject(arguments.encode())
        value = {name: read[name] for name in read.names()}
        compact(value)  # a value that is just shallow enough to parse may be too deep to render
    except (ValueError, RecursionError):
        return {"arguments": arguments}
    return value
