"""Builds answers to chat requests, as a completion or as chunks. Pure, no I/O.

The format is that of DashScope's OpenAI-compatible mode: the first chunk has the role and empty
content, later deltas contain nulls, later fragments of a tool call have an empty id, and the last
chunk has usage and no choices, only if it was requested.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.sandbox import search
from qwen_wsgi.sandbox.faults import Spec, without_magic
from qwen_wsgi.sandbox.schema import instance_of

Json = dict[str, Any]

_PIECE: Final = re.compile(r"\S+\s*|\s+")
_CJK: Final = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]")
_ECHO_CHARS: Final = 4000
# Shortest prompt in DashScope's implicit context cache, and the size of its blocks, in tokens.
_CACHE_MIN_TOKENS: Final = 256
_CACHE_BLOCK_TOKENS: Final = 64
# Shortest prompt that an explicit cache_control mark caches, in tokens.
_EXPLICIT_MIN_TOKENS: Final = 1024
_FRAGMENT_CHARS: Final = 12


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: pieces of reasoning, then pieces of content, then tool calls."""

    reasoning: tuple[str, ...]
    content: tuple[str, ...]
    calls: tuple[ToolCall, ...]
    finish: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, whether it will be streamed or not."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Json
    pages: Json | None = None


def answer(body: Json, spec: Spec, *, now_s: float) -> Answer:
    """Build the answer to a chat request.

    Args:
        body: the request, already checked.
        spec: the behaviours selected for it.
        now_s: epoch seconds for `created`.
    """
    count = body.get("n")
    several = count if isinstance(count, int) and 1 <= count <= 4 else 1
    choices = tuple(_choice(body, spec, number) for number in range(several))
    identity = f"chatcmpl-{uuid.uuid4()}"
    return Answer(
        identity,
        int(now_s),
        str(body.get("model")),
        choices,
        _usage(body, choices, spec),
        search.found(body, spec),
    )


def estimate_tokens(text: str) -> int:
    """Estimate a token count: one per CJK character, one per four others."""
    cjk = len(_CJK.findall(text))
    return cjk + (len(text) - cjk + 3) // 4


def completion(made: Answer, spec: Spec) -> Json:
    """Return the complete, non-streamed answer."""
    whole: Json = {
        "choices": [_complete_choice(choice, i, spec) for i, choice in enumerate(made.choices)],
        "object": "chat.completion",
        "usage": made.usage,
        "created": made.created,
        "system_fingerprint": None,
        "model": made.model,
        "id": made.id,
    }
    if "no-usage" in spec:
        del whole["usage"]
    if made.pages is not None:
        whole["search_info"] = made.pages
    return whole


def chunks(made: Answer, spec: Spec, *, include_usage: bool) -> Iterator[Json]:
    """Yield the chunks of a streamed answer, the one with usage last."""
    per_choice = [_deltas(choice, i, spec) for i, choice in enumerate(made.choices)]
    with_null = include_usage or "usage-null" in spec
    together = include_usage and "usage-with-finish" in spec
    pages = made.pages
    for round_ in itertools.zip_longest(*per_choice):
        for entry in round_:
            if entry is None:
                continue
            ended = entry["finish_reason"] is not None
            usage = made.usage if (together and ended) or "usage-each" in spec else None
            chunk = _chunk(made, [entry], usage, with_null or usage is not None)
            if pages is not None and (ended or "pages-last" not in spec):
                chunk["search_info"], pages = pages, None
            yield chunk
    if include_usage and not together and "no-usage" not in spec:
        yield _chunk(made, [], made.usage, True)


def wants_usage(body: Json) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def last_user_text(body: Json) -> str:
    """Return the text of the last user message; parts are joined."""
    for message in reversed(_messages(body)):
        if message.get("role") == "user":
            return _text_of(message)
    return ""


def _messages(body: Json) -> list[Json]:
    messages = body.get("messages")
    return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []


def _text_of(message: Json) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(p["text"]) for p in content if isinstance(p, dict) and "text" in p)
    return content if isinstance(content, str) else ""


# --- the text -------------------------------------------------------------------------------------


def _choice(body: Json, spec: Spec, number: int) -> Choice:
    calls = _tool_calls(body, spec)
    xml = "xml-tools" in spec and calls
    text = _xml_text(calls) if xml else _text(body, spec, number)
    thinking = body.get("enable_thinking") is True or "think" in spec
    reasoning = _pieces(_thoughts(body)) if thinking else ()
    if "finish-only" in spec:
        return Choice((), (), (), "stop")
    if calls and not xml:
        finish = "stop" if "tool-finish-stop" in spec else "tool_calls"
        return Choice(reasoning, (), calls, spec.text("finish", finish))
    text, finish = _shortened(text, body, spec)
    if "think-tags" in spec:
        text, reasoning = f"<think>\n{_thoughts(body)}\n</think>\n\n{text}", ()
    return Choice(reasoning, _cut_to_pieces(text, spec), (), spec.text("finish", finish))


def _text(body: Json, spec: Spec, number: int) -> str:
    if "text" in spec:
        return search.marked(spec.text("text"), body, spec)
    structured = _structured(body)
    if structured is not None:
        return structured
    prompt = without_magic(last_user_text(body))[:_ECHO_CHARS]
    messages = _messages(body)
    if messages and messages[-1].get("role") == "tool":
        text = f"[sandbox] The tool answered: {_text_of(messages[-1])[:_ECHO_CHARS]}"
    else:
        text = f"[sandbox] You said: {prompt}" + _media_remark(messages)
    if number:
        text += f" (choice {number})"
    if "chunks" in spec:
        rest = max(0, spec.count("chunks") - 1)
        text = "[sandbox] " + "".join(f"word-{i} " for i in range(1, rest + 1))
    if "long" in spec:
        line = " The quick brown fox jumps over the lazy dog; 敏捷的棕色狐狸跳过懒狗。"
        text += line * (max(0, spec.count("long") - len(text)) // len(line) + 1)
    if "huge-event" in spec:
        text = "[sandbox] ".ljust(spec.count("huge-event"), "x")
    return search.marked(text, body, spec)


def _structured(body: Json) -> str | None:
    """Return JSON text if the request wants it, else None."""
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        echo = {"sandbox": "[sandbox]", "you_said": last_user_text(body)[:_ECHO_CHARS]}
        return json.dumps(echo, ensure_ascii=False)
    if kind == "json_schema" and isinstance(wanted, dict):
        described = wanted.get("json_schema")
        schema = described.get("schema", {}) if isinstance(described, dict) else {}
        return json.dumps(instance_of(schema), ensure_ascii=False)
    return None


def _media_remark(messages: list[Json]) -> str:
    counts = {"image": 0, "video": 0, "audio": 0}
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = str(part.get("type")) if isinstance(part, dict) else ""
            for name in counts:
                counts[name] += kind in (name, f"{name}_url", f"input_{name}")
    seen = [f"{n} {name}{'s' if n > 1 else ''}" for name, n in counts.items() if n]
    return f" I see {' and '.join(seen)}." if seen else ""


def _thoughts(body: Json) -> str:
    prompt = without_magic(last_user_text(body))[:80]
    return f"The user wrote {prompt!r}. I am a sandbox, so I will repeat it."


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(_PIECE.findall(text))


def _cut_to_pieces(text: str, spec: Spec) -> tuple[str, ...]:
    if "huge-event" in spec:
        return (text,)
    if "size" in spec:
        size = max(1, spec.count("size"))
        return tuple(text[i : i + size] for i in range(0, len(text), size))
    return _pieces(text)


def _shortened(text: str, body: Json, spec: Spec) -> tuple[str, str]:
    """Apply stop sequences and the token limit; return the text and the finish_reason."""
    stops = body.get("stop")
    for stop in [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else []:
        if isinstance(stop, str) and stop:
            text = text.partition(stop)[0]
    if "partial-success" in spec:
        return text[: len(text) // 2], "stop"
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
    limit = min((value for value in limits if isinstance(value, int)), default=None)
    if limit is not None and estimate_tokens(text) > limit:
        return text[: limit * 4], "length"
    return text, "stop"


# --- tool calls -----------------------------------------------------------------------------------


def _tool_calls(body: Json, spec: Spec) -> tuple[ToolCall, ...]:
    functions = _functions(body)
    messages = _messages(body)
    answered = bool(messages) and messages[-1].get("role") == "tool"
    if "tool-rounds" in spec:
        answered = answered and _rounds(messages) >= spec.count("tool-rounds", 1)
    choice = body.get("tool_choice")
    if not functions or answered or choice == "none" or "no-tools" in spec:
        return ()
    if isinstance(choice, dict):
        wanted = choice.get("function", {})
        functions = [f for f in functions if f.get("name") == wanted.get("name")] or functions[:1]
    count = spec.count("tools", 1)
    return tuple(_call(functions[i % len(functions)], spec) for i in range(count))


def _rounds(messages: list[Json]) -> int:
    """How many answers with calls there were since the user spoke."""
    rounds = 0
    for message in reversed(messages):
        if message.get("role") == "user":
            break
        rounds += bool(message.get("tool_calls"))
    return rounds


def _functions(body: Json) -> list[Json]:
    tools = body.get("tools")
    found = (
        [t.get("function") for t in tools if isinstance(t, dict)] if isinstance(tools, list) else []
    )
    return [f for f in found if isinstance(f, dict)]


def _call(function: Json, spec: Spec) -> ToolCall:
    value = instance_of(function.get("parameters", {"type": "object"}))
    arguments = json.dumps(value if isinstance(value, dict) else {}, ensure_ascii=False)
    if "tool-args" in spec:
        arguments = spec.text("tool-args")
    if "tool-bad-json" in spec:
        arguments = arguments[: max(1, len(arguments) - 2)]
    if "tool-empty-args" in spec:
        arguments = ""
    return ToolCall(f"call_{uuid.uuid4().hex[:22]}", str(function.get("name")), arguments)


def _xml_text(calls: tuple[ToolCall, ...]) -> str:
    lines = ["<function_calls>"]
    for call in calls:
        lines.append(f'<invoke name="{call.name}">')
        try:
            members = json.loads(call.arguments or "{}")
        except ValueError:  # broken by another fault: put unchanged between the tags
            lines.append(call.arguments)
            members = {}
        for name, value in members.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f'<parameter name="{name}">{text}</parameter>')
        lines.append("</invoke>")
    return "\n".join([*lines, "</function_calls>"])


# --- usage ----------------------------------------------------------------------------------------


def _usage(body: Json, choices: tuple[Choice, ...], spec: Spec) -> Json:
    prompt = spec.count("prompt-tokens", _prompt_tokens(body))
    reasoning = sum(estimate_tokens("".join(choice.reasoning)) for choice in choices)
    visible = sum(
        estimate_tokens(
            "".join(choice.content) + "".join(c.name + c.arguments for c in choice.calls)
        )
        for choice in choices
    )
    output = spec.count("completion-tokens", reasoning + visible)
    details = _prompt_details(body, prompt, spec)
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
    if "usage-totals-only" in spec:
        return {**usage, "prompt_tokens": 0, "completion_tokens": 0}
    if "details-null" in spec:
        return {**usage, "prompt_tokens_details": None, "completion_tokens_details": None}
    if "cached-top-level" in spec:
        return {**usage, "cached_tokens": details["cached_tokens"]}
    usage["prompt_tokens_details"] = details
    if reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def _prompt_tokens(body: Json) -> int:
    tokens = sum(estimate_tokens(_text_of(message)) + 4 for message in _messages(body))
    if body.get("tools"):
        tokens += estimate_tokens(json.dumps(body["tools"], ensure_ascii=False))
    return tokens


def _prompt_details(body: Json, prompt: int, spec: Spec) -> Json:
    implicit = prompt // 2 // _CACHE_BLOCK_TOKENS * _CACHE_BLOCK_TOKENS
    cached = spec.count("cached", implicit if prompt >= _CACHE_MIN_TOKENS else 0)
    details: Json = {"cached_tokens": cached}
    if prompt >= _EXPLICIT_MIN_TOKENS and '"cache_control"' in json.dumps(body.get("messages")):
        created = prompt - cached
        details["cache_creation_input_tokens"] = created
        details["cache_creation"] = {"ephemeral_5m_input_tokens": created}
        details["cache_type"] = "ephemeral"
    return details


# --- format ---------------------------------------------------------------------------------------


def _complete_choice(choice: Choice, index: int, spec: Spec) -> Json:
    message: Json = {"role": "assistant", "content": "".join(choice.content)}
    if choice.reasoning:
        field = "reasoning" if "reasoning-field" in spec else "reasoning_content"
        message[field] = "".join(choice.reasoning)
    if choice.calls:
        message["tool_calls"] = [
            _call_shape(call.id, call.name, call.arguments, i)
            for i, call in enumerate(choice.calls)
        ]
    return {"message": message, "finish_reason": choice.finish, "index": index, "logprobs": None}


def _call_shape(identity: str | None, name: str | None, arguments: str | None, index: int) -> Json:
    function: Json = {"arguments": arguments}
    if name is not None:
        function["name"] = name
    shape: Json = {"function": function, "index": index, "type": "function"}
    if identity is not None:
        shape["id"] = identity
    return shape


def _chunk(made: Answer, choices: list[Json], usage: Json | None, with_usage: bool) -> Json:
    chunk: Json = {"choices": choices, "object": "chat.completion.chunk"}
    if with_usage:
        chunk["usage"] = usage
    return {
        **chunk,
        "created": made.created,
        "system_fingerprint": None,
        "service_tier": None,
        "model": made.model,
        "id": made.id,
    }


def _entry(index: int, delta: Json, finish: str | None = None) -> Json:
    return {"delta": delta, "finish_reason": finish, "index": index, "logprobs": None}


def _delta(**given: Any) -> Json:
    """Return a delta with nulls for all absent fields, as DashScope does."""
    empty = {
        "content": None,
        "function_call": None,
        "refusal": None,
        "role": None,
        "tool_calls": None,
    }
    return {**empty, **given}


def _deltas(choice: Choice, index: int, spec: Spec) -> Iterator[Json]:
    """Yield the `choices` entries of one choice, in order."""
    first: Json = {"content": "", "role": "assistant"}
    if choice.reasoning:
        first = {"content": None, "reasoning_content": "", "role": "assistant"}
    yield _entry(index, first)
    field = "reasoning" if "reasoning-field" in spec else "reasoning_content"
    for piece in _grown(choice.reasoning, spec):
        yield _entry(index, _delta(**{field: piece}))
    for number, piece in enumerate(_grown(choice.content, spec)):
        yield _entry(index, _delta(content=piece))
        if number == 0 and "dup-first" in spec:
            yield _entry(index, _delta(content=piece))
        if "empty-chunks" in spec:
            yield _entry(index, _delta())
    for fragment in _fragments(choice.calls, spec):
        yield _entry(index, _delta(tool_calls=[fragment]))
    if "no-finish" in spec:
        return
    if "error-finish" in spec:
        yield _entry(index, _delta(content=_error_finish_text(spec)), "error_finish")
        return
    for _ in range(2 if "twice-finish" in spec else 1):
        yield _entry(index, {} if choice.calls else {"content": ""}, choice.finish)


def _grown(pieces: tuple[str, ...], spec: Spec) -> Iterator[str]:
    if "cumulative" not in spec:
        yield from pieces
        return
    text = ""
    for piece in pieces:
        text += piece
        yield text


def _error_finish_text(spec: Spec) -> str:
    body = '{"code":"Throttling.RateQuota","message":"Requests rate limit exceeded"}'
    return spec.text("error-finish") or f"Throttling.RateQuota: {body}"


def _fragments(calls: tuple[ToolCall, ...], spec: Spec) -> Iterator[Json]:
    for number, call in enumerate(calls):
        index = 0 if "tool-collide" in spec else number
        for fragment in _call_fragments(call, index, spec):
            if "tool-no-index" in spec:
                del fragment["index"]
            yield fragment
    if "tool-replay" in spec and calls:
        yield _call_shape(calls[0].id, calls[0].name, calls[0].arguments, 0)


def _call_fragments(call: ToolCall, index: int, spec: Spec) -> Iterator[Json]:
    identity: str | None = None if "tool-no-id" in spec else call.id
    if "tool-whole" in spec:
        yield _call_shape(identity, call.name, call.arguments, index)
        return
    late = "tool-late-id" in spec
    opening = None if "null-args" in spec else ""
    yield _call_shape(None if late else identity, call.name, opening, index)
    again = call.name if "tool-name-again" in spec else None
    later = None if identity is None else ""
    for start in range(0, len(call.arguments), _FRAGMENT_CHARS):
        piece = call.arguments[start : start + _FRAGMENT_CHARS]
        yield _call_shape(identity if late and start == 0 else later, again, piece, index)
    if "null-args" in spec:
        yield _call_shape(later, again, None, index)
