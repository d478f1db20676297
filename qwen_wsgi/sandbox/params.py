"""Refuses chat parameters as DashScope's OpenAI-compatible mode does. Pure, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeGuard

from qwen_wsgi.sandbox.errors import Refusal

_ROLES: Final = ("system", "assistant", "user", "tool", "function")
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
# Open-weight models of the first Qwen3 family think only in streams.
_STREAM_ONLY_THINKING: Final = re.compile(r"qwen3-\d+(\.\d+)?b")
# The chat templates of these models accept one system message, the first one.
_SYSTEM_FIRST: Final = re.compile(r"qwen3\.[5-9]|coder-model")
_MAX_OUTPUT: Final = (
    ("qwen3.8-max", 131_072),
    ("qwen-plus", 32_768),
    ("qwen-flash", 32_768),
    ("qwen-max", 8_192),
    ("qwen-turbo", 16_384),
    ("qwen3-vl", 32_768),
)
_MEDIA: Final = (
    "<400> InternalError.Algo.InvalidParameter: The provided messages input is invalid. "
    "The error info is [Unexpected item type in content.]"
)
_DEFAULT_MAX_OUTPUT: Final = 65_536


def refusal_for(body: dict[str, Any]) -> Refusal | None:
    """Return DashScope's refusal of a chat request, or None."""
    for check in _CHECKS:
        for complaint in check(body):
            return Refusal(400, "invalid_parameter_error", complaint, "invalid_request_error")
    return None


def portal_refusal(body: dict[str, Any]) -> Refusal | None:
    """Return the refusal of the login portal unless the first message has the required form.

    Since April 2026 the portal answers `bad request` unless the first message is a system message
    whose content is a list of parts, one of them marked with cache_control.
    """
    messages = body.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else {}
    parts = (
        first.get("content") if isinstance(first, dict) and first.get("role") == "system" else None
    )
    if isinstance(parts, list) and any(isinstance(p, dict) and "cache_control" in p for p in parts):
        return None
    return Refusal(400, "invalid_parameter_error", "bad request", "invalid_request_error")


def media_refusal(body: dict[str, Any]) -> Refusal | None:
    """Return a text model's refusal of a picture, sound or video in any message, or None."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") != "text":
                return Refusal(400, "invalid_parameter_error", _MEDIA, "invalid_request_error")
    return None


def _messages(body: dict[str, Any]) -> Iterator[str]:
    if not isinstance(body.get("model"), str) or not body["model"]:
        yield "you must provide a model parameter"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "[] is too short - 'messages'"
        return
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            yield f"{message!r} is not of type 'object' - 'messages.{number}'"
        elif message.get("role") not in _ROLES:
            yield f"{message.get('role')} is not one of {list(_ROLES)} - 'messages.[{number}].role'"
        elif message["role"] == "assistant" and "content" not in message:
            yield f"'content' is a required property - 'messages.{number}'"
        elif not isinstance(message.get("content"), (str, list, type(None))):
            yield f"Invalid type for 'messages.[{number}].content'"
    if not any(message.get("role") in ("user", "tool", "function") for message in messages):
        yield "The input messages do not contain elements with the role of user"
    late = any(message.get("role") == "system" for message in messages[1:])
    if late and _SYSTEM_FIRST.match(str(body.get("model"))):
        yield "System message must be at the beginning"


def _history(body: dict[str, Any]) -> Iterator[str]:
    """Refuse calls with unparsable arguments, as users of several clients reported."""
    for message in body["messages"]:
        calls = message.get("tool_calls") if message["role"] == "assistant" else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and not _is_json(function.get("arguments")):
                yield (
                    '<400> InternalError.Algo.InvalidParameter: The "function.arguments" parameter '
                    "of the code model must be in JSON format."
                )


def _is_json(text: Any) -> bool:
    try:
        json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _sampling(body: dict[str, Any]) -> Iterator[str]:
    temperature = body.get("temperature")
    if _number(temperature) and not 0 <= temperature < 2:
        yield "'temperature' must be in the range [0, 2)"
    top_p = body.get("top_p")
    if _number(top_p) and not 0 < top_p <= 1:
        yield "Range of top_p should be (0.0, 1.0]"
    penalty = body.get("presence_penalty")
    if _number(penalty) and not -2 <= penalty <= 2:
        yield "Range of presence_penalty should be [-2.0, 2.0]"
    seed = body.get("seed")
    if _number(seed) and not 0 <= seed < 2**63:
        yield "Range of seed should be [0, 9223372036854775807]"
    logprobs = body.get("top_logprobs")
    if _number(logprobs) and not 0 <= logprobs <= 5:
        yield "Range of top_logprobs should be [0, 5]"


def _lengths(body: dict[str, Any]) -> Iterator[str]:
    model = str(body.get("model"))
    most = next(
        (limit for name, limit in _MAX_OUTPUT if model.startswith(name)), _DEFAULT_MAX_OUTPUT
    )
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if _number(value) and not 1 <= value <= most:
            yield f"Range of {name} should be [1, {most}]"
    count = body.get("n")
    if _number(count) and not 1 <= count <= 4:
        yield "Range of n should be [1, 4]"
    if _number(count) and count > 1 and body.get("tools"):
        yield "n should be 1 when tools is set"


def _streaming(body: dict[str, Any]) -> Iterator[str]:
    if body.get("stream_options") is not None and body.get("stream") is not True:
        yield "'stream_options' only support with stream=true"
    if body.get("stream") is True:
        return
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        yield "'audio' output only support with stream=true"
    if body.get("enable_thinking") is True and _STREAM_ONLY_THINKING.match(str(body.get("model"))):
        yield "parameter.enable_thinking must be set to false for non-streaming calls"


def _thinking(body: dict[str, Any]) -> Iterator[str]:
    budget = body.get("thinking_budget")
    if budget is not None and not (_number(budget) and budget > 0):
        yield "The thinking_budget parameter must be a positive integer"
    if budget is not None and body.get("reasoning_effort") is not None:
        yield "reasoning_effort and thinking_budget cannot be set at the same time"


def _tools(body: dict[str, Any]) -> Iterator[str]:
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        yield f"{tools!r} is not of type 'array' - 'tools'"
        return
    if tools == []:
        yield "[] is too short - 'tools'"
    for tool in tools or ():
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name == "search":
            yield "Tool names are not allowed to be [search]"
        elif not isinstance(name, str) or not _TOOL_NAME.match(name):
            yield "Invalid function name in 'tools': it must match [A-Za-z0-9_-]{1,64}"
    choice = body.get("tool_choice")
    if isinstance(choice, str) and choice not in ("none", "auto"):
        yield 'tool_choice is one of the strings that should be ["none", "auto"]'
    if isinstance(choice, dict) and body.get("enable_thinking") is True:
        yield (
            "The tool_choice parameter does not support being set to required or object in "
            "thinking mode"
        )


def _response_format(body: dict[str, Any]) -> Iterator[str]:
    wanted = body.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_object":
        return
    if "json" not in json.dumps(body.get("messages"), ensure_ascii=False).lower():
        yield (
            "'messages' must contain the word 'json' in some form, to use 'response_format' of "
            "type 'json_object'."
        )


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_CHECKS: Final[tuple[Callable[[dict[str, Any]], Iterator[str]], ...]] = (
    _messages,
    _history,
    _sampling,
    _lengths,
    _streaming,
    _thinking,
    _tools,
    _response_format,
)
