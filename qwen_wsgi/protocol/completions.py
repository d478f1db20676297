"""Completions, OpenAI's API before chat: a prompt and the text that follows it.

Qwen's models of today chat, so a prompt becomes a user message. Two kinds of upstream take such a
request as it is, and are asked so: servers other than Qwen's own, and Model Studio's old coder
models, which fill a gap between `prompt` and `suffix` (vendor's "Completions" page; the template is
that of Qwen2.5-Coder).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError
from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.chat.choices import combined
from qwen_wsgi.protocol.embeddings import model_of
from qwen_wsgi.protocol.encoder import COMMENT, error_event
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import JsonObject, compact

#: Each is a call of its own.
MAX_PROMPTS: Final = 64

_OBJECT: Final = "text_completion"
_FINISHES: Final = frozenset({"stop", "length", "content_filter"})

#: Members that chat does not know, or knows as something else.
_NOT_OF_CHAT: Final = ("prompt", "suffix", "echo", "best_of", "logprobs")
#: The ways in which clients ask for thinking, or for none.
_THINKING: Final = ("enable_thinking", "thinking_budget", "reasoning_effort", "reasoning")

_FILLS_IN: Final = re.compile(r"(?:.*/)?(?:qwen2\.5-coder-|qwen-coder-turbo)", re.IGNORECASE)
_GAP: Final = "<|fim_prefix|>"


@dataclass(frozen=True)
class CompletionsRequest:
    """A request as far as it must be understood whoever answers it.

    Attributes:
        suffix: what stands behind the gap that is to be filled; None if there is no gap.
        wants_usage: the client asked for `stream_options.include_usage`.
    """

    body: JsonObject
    model: str
    suffix: str | None
    stream: bool
    wants_usage: bool

    @property
    def has_gap(self) -> bool:
        """Whether text is to be filled in: between prompt and suffix, or in a template of the
        client's own."""
        given = self.body.get("prompt")
        prompts = given if isinstance(given, list) else [given]
        return self.suffix is not None or any(
            isinstance(prompt, str) and _GAP in prompt for prompt in prompts
        )


def parse_request(body: JsonObject) -> CompletionsRequest:
    """Check what must be understood whoever answers.

    Raises:
        BadRequest: `model` or `suffix` is no string, or there is no `prompt`.
    """
    model = model_of(body)
    if body.get("prompt") is None:
        raise _refused("prompt", "Missing required parameter: 'prompt'.", _MISSING)
    suffix = body.get("suffix")
    if not isinstance(suffix, str | None):
        raise _refused("suffix", "Invalid type for 'suffix': expected a string.", _TYPE)
    options = body.get("stream_options")
    return CompletionsRequest(
        body=body,
        model=model,
        suffix=suffix or None,
        stream=body.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def fills_in(model: str) -> bool:
    """Whether Model Studio has this model behind `/completions`, where it fills gaps."""
    return _FILLS_IN.match(model) is not None


# --- to chat ------------------------------------------------------------------------------------


def chat_requests(
    request: CompletionsRequest, *, thinking: bool
) -> tuple[list[ChatRequest], tuple[str, ...]]:
    """A chat request for each prompt, and what was changed beyond that.

    Args:
        thinking: leave it to the model whether it thinks. Else it is asked not to, unless the
            client wants it: who completes text waits for the text.

    Raises:
        BadRequest: of what chat has no way to answer, or what makes no sense.
    """
    if request.suffix is not None:
        raise _refused(
            "suffix",
            "'suffix' needs a model that fills gaps, which Qwen's chat models do not. Use "
            "qwen2.5-coder-7b-instruct, -14b-, -32b- or qwen-coder-turbo with a Model Studio key "
            "of Beijing, or leave out 'suffix' and say in the prompt what is to be written.",
        )
    prompts = _plain_prompts(request)
    quiet = not thinking and all(request.body.get(name) is None for name in _THINKING)
    changes = {"enable_thinking": False} if quiet else {}
    made = [
        chat.parse_request(
            JsonObject(
                request.body.render(
                    {**changes, "messages": [{"role": "user", "content": prompt}]},
                    drop=_NOT_OF_CHAT,
                )
            ),
            added=changes,
        )
        for prompt in prompts
    ]
    return made, ("thinking:off",) if quiet else ()


def _plain_prompts(request: CompletionsRequest) -> list[str]:
    """The prompts of a request that asks for nothing but what follows them."""
    _refuse_what_only_text_models_do(request.body)
    given = request.body["prompt"]
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not prompts:
        raise _refused(
            "prompt", "Invalid 'prompt': expected a string or a non-empty array of strings.", _TYPE
        )
    if any(isinstance(prompt, int | list) for prompt in prompts):
        raise _refused(
            "prompt",
            "Invalid 'prompt': token ids are not supported, because Qwen's tokens differ from "
            "OpenAI's. Send text.",
            "token_input_unsupported",
        )
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise _refused("prompt", "Invalid 'prompt': every prompt must be a string.", _TYPE)
    if len(prompts) > MAX_PROMPTS:
        raise _refused(
            "prompt",
            f"Invalid 'prompt': at most {MAX_PROMPTS} prompts are allowed, {len(prompts)} were "
            "sent. Send them in several requests.",
            "array_above_max_length",
        )
    if len(prompts) > 1 and request.body.get("stream"):
        raise _refused(
            "prompt",
            "Invalid 'prompt': several cannot be answered in one stream. Send one request for "
            "each, or leave out 'stream'.",
        )
    return prompts


def _refuse_what_only_text_models_do(body: JsonObject) -> None:
    if body.get("echo"):
        raise _refused(
            "echo",
            "'echo' is not supported. Put the prompt in front of the text that comes back.",
        )
    best_of = body.get("best_of")
    if best_of is not None and best_of != 1:
        raise _refused(
            "best_of", "'best_of' is not supported: use 'n', and choose among the answers."
        )
    if body.get("logprobs") is not None and body["logprobs"] is not False:
        raise _refused(
            "logprobs",
            "'logprobs' is not supported here. /v1/chat/completions has 'logprobs' and "
            "'top_logprobs', for the models that tell them.",
        )


def whole(
    completions: Sequence[Mapping[str, Any]], *, id: str, model: str, created: int
) -> dict[str, Any]:
    """OpenAI's `text_completion` of one `chat.completion` for each prompt.

    Shape: `{"id", "object": "text_completion", "created", "model", "choices": [{"text", "index",
    "logprobs": null, "finish_reason"}], "usage"?}`; usage is summed. Thinking is no text.
    """
    together = combined(
        [{**each, "choices": list(objects(each.get("choices")))} for each in completions]
    )
    told: dict[str, Any] = {**_head(id, model, created), "choices": []}
    for choice in together["choices"]:
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        told["choices"].append(
            {
                "text": text if isinstance(text, str) else "",
                "index": choice["index"],
                "logprobs": None,
                "finish_reason": _finish(choice.get("finish_reason")) or "stop",
            }
        )
    if together.get("usage") is not None:
        told["usage"] = together["usage"]
    return told


class CompletionsEncoder:
    """Tells chat chunks as those of a completion.

    Args:
        id, model, created: of the answer, whatever the chunks say.
        with_usage: the client asked for it, so that every chunk has a `usage`, of null but for the
            last one.
    """

    ends_after_failure = False

    def __init__(self, *, id: str, model: str, created: int, with_usage: bool) -> None:
        self._head = _head(id, model, created)
        self._with_usage = with_usage
        # Nearly every event is a piece of text of the first choice.
        self._before = b"data: " + compact(self._head)[:-1].encode() + b',"choices":[{"text":'
        self._after = b',"index":0,"logprobs":null,"finish_reason":null}]'
        self._after += b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def feed(self, events: bytes) -> bytes:
        """The texts and finish reasons of some chunks, or their usage."""
        return b"".join(self._told(event) for event in sse.events(events))

    def _told(self, event: bytes) -> bytes:
        chunk = sse.parse(event)
        if not isinstance(chunk, dict):
            return b""
        told, usage = chunk.get("choices"), chunk.get("usage")
        choices = list(_choices(told))
        if not usage and len(choices) == 1:
            text, index, finish = choices[0]
            if finish is None and index == 0:
                return self._before + compact(text).encode() + self._after
        if not choices and not usage:
            return b""
        return self._chunk(choices, usage)

    def _chunk(self, choices: list[tuple[str, int, str | None]], usage: Any) -> bytes:
        made: dict[str, Any] = {
            **self._head,
            "choices": [
                {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
                for text, index, finish in choices
            ],
        }
        if self._with_usage:
            made["usage"] = usage or None
        return sse.render(made)

    def end(self) -> bytes:
        """OpenAI's last line."""
        return sse.DONE

    def fail(self, error: ApiError) -> bytes:
        """An error where a chunk should be, as the official SDKs raise it."""
        return error_event(error)

    def keep_alive(self, kind: str) -> bytes:
        """A comment, or a chunk without text."""
        return COMMENT if kind == "comment" else self._before + b'""' + self._after


def _choices(told: Any) -> Iterator[tuple[str, int, str | None]]:
    """Text, index and finish reason of those choices of a chunk that have one of the two."""
    for choice in objects(told):
        delta, index = choice.get("delta"), choice.get("index")
        text = delta.get("content") if isinstance(delta, dict) else None
        text = text if isinstance(text, str) else ""
        finish = _finish(choice.get("finish_reason"))
        if text or finish:
            yield text, index if isinstance(index, int) else 0, finish


def _finish(reason: Any) -> str | None:
    """A finish reason in the words of completions; None while there is none."""
    if not reason or not isinstance(reason, str):
        return None
    return reason if reason in _FINISHES else "stop"


def _head(id: str, model: str, created: int) -> dict[str, Any]:
    return {"id": id, "object": _OBJECT, "created": created, "model": model}


# --- to an upstream that knows completions itself -----------------------------------------------


def native_body(request: CompletionsRequest, *, model: str) -> bytes:
    """The request for a server that understands all of it; the answer is always asked as a whole.

    The client's own bytes, but for the model's name and the streaming.
    """
    changes: dict[str, Any] = {} if request.body.get("model") == model else {"model": model}
    if request.stream:
        changes["stream"] = False
    return request.body.render(changes, drop=("stream_options",))


def gap_body(request: CompletionsRequest, *, model: str) -> bytes:
    """The request for a coder model of Model Studio, with the gap in the model's template.

    Raises:
        BadRequest: of what such a model has no way to answer.
    """
    prompts = _plain_prompts(request)
    if len(prompts) > 1:
        raise _refused(
            "prompt",
            "Invalid 'prompt': several cannot have one 'suffix'. Send one request for each.",
        )
    prompt = prompts[0]
    if request.suffix is not None:
        prompt = f"{_GAP}{prompt}<|fim_suffix|>{request.suffix}<|fim_middle|>"
    return request.body.render(
        {"model": model, "prompt": prompt, "stream": False},
        drop=("suffix", "echo", "best_of", "logprobs", "stream_options"),
    )


def native_answer(value: Mapping[str, Any], *, model: str) -> dict[str, Any]:
    """A server's own `text_completion` with all that OpenAI's schema requires of it.

    Args:
        model: the client's name for it.

    Raises:
        UpstreamError: it has no choices.
    """
    choices = value.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise UpstreamError(
            "The upstream's answer is no completion: it has no choices.", code="upstream_bad_answer"
        )
    return {
        **value,
        "object": _OBJECT,
        "model": model,
        "choices": [
            {"text": "", "index": index, "logprobs": None, "finish_reason": "stop", **choice}
            for index, choice in enumerate(choices)
        ],
    }


def events_of(answer: Mapping[str, Any], *, with_usage: bool) -> bytes:
    """A whole `text_completion` as the events of a complete stream."""
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    rest: dict[str, Any] = {"usage": None} if with_usage else {}
    told = []
    for choice in answer["choices"]:
        told.append({**choice, "finish_reason": None})
        told.append({**choice, "text": "", "logprobs": None})
    events = [sse.render({**head, "choices": [choice], **rest}) for choice in told]
    if with_usage and answer.get("usage") is not None:
        events.append(sse.render({**head, "choices": [], "usage": answer["usage"]}))
    return b"".join(events) + sse.DONE


_MISSING: Final = "missing_required_parameter"
_TYPE: Final = "invalid_type"


def _refused(param: str, message: str, code: str = "unsupported_parameter") -> BadRequest:
    return BadRequest(message, param=param, code=code)
