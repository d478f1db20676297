"""Translates the parameters of a request to chat; others are listed as lost, or refused."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.translation import thinking
from qwen_wsgi.protocol.validation import wrong_type

_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_VERBOSITIES: Final = ("low", "medium", "high")
_FORMATS: Final = ("text", "json_object", "json_schema")

#: The values of `include` that are supported; others request parts of tools that are not.
ENCRYPTED: Final = "reasoning.encrypted_content"
SOURCES: Final = "web_search_call.action.sources"
LOGPROBS: Final = "message.output_text.logprobs"

#: Members that chat knows by the same name.
_TEXTS: Final = (
    *("user", "prompt_cache_key", "prompt_cache_retention"),
    *("safety_identifier", "service_tier"),
)
_NUMBERS: Final = ("temperature", "top_p")

#: Members of chat that the Responses API does not have and that SDKs send by `extra_body`: Qwen's
#: own, those of sampling and of thinking. They are passed on unchanged.
_EXTRAS: Final = thinking.ALL - {thinking.NESTED, thinking.EFFORT} | frozenset(
    {
        *thinking.HOLDERS,
        "enable_search",
        "frequency_penalty",
        "logit_bias",
        "min_p",
        "presence_penalty",
        "preserve_thinking",
        "repetition_penalty",
        "search_options",
        "seed",
        "stop",
        "top_k",
        "vl_high_resolution_images",
    }
)

#: Members that can be dropped without a loss: data about Codex, options for OpenAI's cache, and a
#: guess at the answer that makes OpenAI's servers faster.
_QUIET: Final = frozenset({"client_metadata", "prediction", "prompt_cache_options"})

#: Members that this or another module reads.
_READ: Final = frozenset(
    {
        *_TEXTS,
        *_NUMBERS,
        *_EXTRAS,
        *("background", "background_options", "context_management", "conversation", "include"),
        *(
            "input",
            "instructions",
            "max_output_tokens",
            "max_tool_calls",
            "metadata",
            "model",
            "parallel_tool_calls",
        ),
        *("previous_response_id", "prompt", "reasoning", "store", "stream", "stream_options"),
        thinking.EFFORT,
        *("text", "tool_choice", "tools", "top_logprobs", "truncation"),
    }
)

_MOST_PAIRS: Final = 16
_LONGEST_KEY: Final = 64
_LONGEST_VALUE: Final = 512
_MOST_LOGPROBS: Final = 20


def include_of(body: JsonObject) -> list[str]:
    """Read `include`; unknown values are ignored later.

    Raises:
        BadRequest: it is not an array of strings.
    """
    include = body.get("include")
    if include is None:
        return []
    if not isinstance(include, list):
        raise wrong_type("include", "an array of strings", include)
    for index, each in enumerate(include):
        if not isinstance(each, str):
            raise wrong_type(f"include[{index}]", "a string", each)
    return include


def members_of(
    body: JsonObject, include: list[str], changes: Changes, *, runs_tools: bool = False
) -> dict[str, Any]:
    """Translate all members of the request except messages and tools.

    Args:
        runs_tools: the proxy runs tools for this request, so that their number can be limited.

    Raises:
        BadRequest: a parameter has a wrong type or value.
    """
    found: dict[str, Any] = {
        **{name: validation.text(body, name) for name in _TEXTS},
        **{name: validation.number(body, name) for name in _NUMBERS},
        "max_completion_tokens": validation.count(body, "max_output_tokens", least=1),
        "parallel_tool_calls": validation.flag(body, "parallel_tool_calls"),
        "metadata": _metadata(body) or None,
        "reasoning_effort": _effort(body),
        **_text(body),
        **_logprobs(body, include),
        **_extras(body, changes),
    }
    validation.mapping(body, "stream_options")  # `include_obfuscation` is ignored
    if validation.count(body, "max_tool_calls", least=1) is not None and not runs_tools:
        changes.note("max_tool_calls", "no-built-in-tools")
    if body.get("context_management"):
        changes.lose(
            "context_management", "is not supported: the client has to shorten its own history"
        )
    truncation = validation.text(body, "truncation")
    if truncation == "auto":
        changes.note("truncation", "not-done")
    elif truncation not in (None, "disabled"):
        raise validation.bad_value("truncation", truncation, ("auto", "disabled"))
    return {name: value for name, value in found.items() if value is not None}


def _extras(body: JsonObject, changes: Changes) -> dict[str, Any]:
    """Keep extra members that Qwen's hosts know; list all others as dropped."""
    extras = {}
    for name in body.names():
        if name in _EXTRAS:
            extras[name] = body[name]
        elif name in _QUIET:
            changes.note(name, "dropped")
        elif name not in _READ and body[name] is not None:
            # A field of an entry ends at its first colon.
            field = header_token(name.replace(":", " "))
            changes.lose(field, "is not known to chat completions")
    return extras


def _metadata(body: JsonObject) -> dict[str, str]:
    pairs = validation.mapping(body, "metadata") or {}
    if len(pairs) > _MOST_PAIRS:
        raise BadRequest(
            f"Invalid 'metadata': at most {_MOST_PAIRS} pairs are allowed.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in pairs.items():
        if not isinstance(value, str):
            raise wrong_type(f"metadata.{key[:_LONGEST_KEY]}", "a string", value)
        if len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE:
            raise BadRequest(
                f"Invalid 'metadata': keys have at most {_LONGEST_KEY} characters, values "
                f"{_LONGEST_VALUE}.",
                param="metadata",
                code="string_above_max_length",
            )
    return pairs


def _effort(body: JsonObject) -> str | None:
    """Read `reasoning.effort`, or chat's name for it, which some clients send here too.

    A summary is always sent, because the whole text is available.
    """
    reasoning = validation.mapping(body, "reasoning") or {}
    effort, name = validation.text(reasoning, "effort", "reasoning."), "reasoning.effort"
    if effort is None:
        effort, name = validation.text(body, thinking.EFFORT), thinking.EFFORT
    if effort is not None and effort not in _EFFORTS:
        raise validation.bad_value(name, effort, _EFFORTS)
    validation.text(reasoning, "summary", "reasoning.")
    return effort


def _text(body: JsonObject) -> dict[str, Any]:
    """Translate `text: {"format", "verbosity"}`."""
    text = validation.mapping(body, "text") or {}
    verbosity = validation.text(text, "verbosity", "text.")
    if verbosity is not None and verbosity not in _VERBOSITIES:
        raise validation.bad_value("text.verbosity", verbosity, _VERBOSITIES)
    form = validation.mapping(text, "format", "text.")
    return {"verbosity": verbosity, "response_format": None if form is None else _format(form)}


def _format(form: dict[str, Any]) -> dict[str, Any] | None:
    kind = validation.required_text(form, "type", "text.format.")
    if kind not in _FORMATS:
        raise validation.bad_value("text.format.type", kind, _FORMATS)
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": kind}
    schema: dict[str, Any] = {"name": validation.required_name(form, "text.format.")}
    if (description := validation.text(form, "description", "text.format.")) is not None:
        schema["description"] = description
    schema["schema"] = validation.mapping(form, "schema", "text.format.")
    if schema["schema"] is None:
        raise validation.missing("text.format.schema")
    strict = form.get("strict")
    if not isinstance(strict, bool | None):
        raise wrong_type("text.format.strict", "a boolean", strict)
    if strict is not None:
        schema["strict"] = strict
    return {"type": kind, "json_schema": schema}


def _logprobs(body: JsonObject, include: list[str]) -> dict[str, Any]:
    top = validation.count(body, "top_logprobs", least=0)
    if top is not None and top > _MOST_LOGPROBS:
        raise BadRequest(
            "Invalid 'top_logprobs': integer above maximum value. Expected a value <= "
            f"{_MOST_LOGPROBS}.",
            param="top_logprobs",
            code="integer_above_max_value",
        )
    return {"logprobs": True, "top_logprobs": top} if LOGPROBS in include else {}
