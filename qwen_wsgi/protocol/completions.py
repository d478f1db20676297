"""Translates completions, OpenAI's API before chat: a prompt and the text that follows it.

Qwen's current models are chat models, so a prompt becomes a user message. Two kinds of upstream get
the request itself: servers other than Qwen's hosts, and Model Studio's old coder models, which fill
a gap between `prompt` and `suffix` (vendor's "Completions" page; the template is that of
Qwen2.5-Coder).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError
from qwen_wsgi.protocol import chat, sse, validation
from qwen_wsgi.protocol.answer_text import AnswerSize, as_events
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.chat.completion import combined
from qwen_wsgi.protocol.encoder import COMMENT, error_event
from qwen_wsgi.protocol.json_access import choice_number, objects
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.translation.thinking import is_set as asks_for_thinking
from qwen_wsgi.protocol.validation import missing, unsupported, wrong_type

#: Each prompt is a call of its own.
MAX_PROMPTS: Final = 64
#: Answers of one request: each may be an upstream call of its own.
MAX_ANSWERS: Final = 256

_OBJECT: Final = "text_completion"
_FINISHES: Final = frozenset({"stop", "length", "content_filter"})

#: Members that chat does not have, or that mean something else there.
_NOT_OF_CHAT: Final = ("prompt", "suffix", "echo", "best_of", "logprobs")

_FILLS_IN: Final = re.compile(r"(?:.*/)?(?:qwen2\.5-coder-|qwen-coder-turbo)", re.IGNORECASE)
_GAP: Final = "<|fim_prefix|>"


@dataclass(frozen=True)
class CompletionsRequest:
    """A request: the members that matter for every kind of upstream, and the whole object.

    Attributes:
        suffix: the text after the gap that is to be filled; None if there is no gap.
        wants_usage: the client asked for `stream_options.include_usage`.
    """

    body: JsonObject
    model: str
    suffix: str | None
    stream: bool
    wants_usage: bool

    @property
    def has_gap(self) -> bool:
        """Whether a gap is to be filled: before the suffix, or in the client's own template."""
        given = self.body.get("prompt")
        prompts = given if isinstance(given, list) else [given]
        return self.suffix is not None or any(
            isinstance(prompt, str) and _GAP in prompt for prompt in prompts
        )


def parse_request(body: JsonObject) -> CompletionsRequest:
    """Check the members that matter for every kind of upstream.

    Raises:
        BadRequest: `model` or `suffix` is not a string, or `prompt` is missing.
    """
    model = validation.model_of(body)
    if body.get("prompt") is None:
        raise missing("prompt")
    suffix = validation.text(body, "suffix")
    options = body.get("stream_options")
    return CompletionsRequest(
        body=body,
        model=model,
        suffix=suffix or None,
        stream=body.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def fills_in(model: str) -> bool:
    """Whether Model Studio serves this model at `/completions`, where it fills gaps."""
    return _FILLS_IN.match(model) is not None


# --- to chat ------------------------------------------------------------------------------------


def chat_requests(
    request: CompletionsRequest, *, thinking: bool
) -> tuple[list[ChatRequest], tuple[str, ...]]:
    """Translate each prompt to a chat request; return them and the entries of the changes.

    Args:
        thinking: leave thinking to the model. Else it is switched off unless the client sets it,
            because a client that completes text waits for the text.

    Raises:
        BadRequest: chat cannot answer the request, or it is invalid.
    """
    if request.suffix is not None:
        raise unsupported(
            "suffix",
            "'suffix' needs a model that fills gaps, which Qwen's chat models do not. Use "
            "qwen2.5-coder-7b-instruct, -14b-, -32b- or qwen-coder-turbo with a Model Studio key "
            "of Beijing, or leave out 'suffix' and say in the prompt what is to be written.",
        )
    prompts = _plain_prompts(request)
    quiet = not thinking and not asks_for_thinking(request.body)
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
    """The prompts of a request, as strings.

    Raises:
        BadRequest: they are not, or the request has options that only text models support.
    """
    _refuse_text_model_options(request.body)
    given = request.body["prompt"]
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not prompts:
        raise wrong_type("prompt", "a string or a non-empty array of strings", prompts)
    if any(isinstance(prompt, int | list) for prompt in prompts):
        raise BadRequest(
            "Invalid 'prompt': token ids are not supported, because Qwen's tokens differ from "
            "OpenAI's. Send text.",
            param="prompt",
            code="token_input_unsupported",
        )
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise wrong_type("prompt", "an array of strings", prompt)
    if len(prompts) > MAX_PROMPTS:
        raise BadRequest(
            f"Invalid 'prompt': at most {MAX_PROMPTS} prompts are allowed, {len(prompts)} were "
            "sent. Send them in several requests.",
            param="prompt",
            code="array_above_max_length",
        )
    n = request.body.get("n")
    if isinstance(n, int) and len(prompts) * n > MAX_ANSWERS:
        raise BadRequest(
            f"Invalid 'n': with {len(prompts)} prompts it makes {len(prompts) * n} answers, and at "
            f"most {MAX_ANSWERS} are allowed. Send several requests.",
            param="n",
            code="integer_above_max_value",
        )
    if len(prompts) > 1 and request.body.get("stream"):
        raise unsupported(
            "prompt",
            "Invalid 'prompt': several cannot be answered in one stream. Send one request for "
            "each, or leave out 'stream'.",
        )
    return prompts


def _refuse_text_model_options(body: JsonObject) -> None:
    if body.get("echo"):
        raise unsupported(
            "echo", "'echo' is not supported. Put the prompt in front of the text that comes back."
        )
    best_of = body.get("best_of")
    if best_of is not None and best_of != 1:
        raise unsupported(
            "best_of", "'best_of' is not supported: use 'n', and choose among the answers."
        )
    if body.get("logprobs") is not None and body["logprobs"] is not False:
        raise unsupported(
            "logprobs",
            "'logprobs' is not supported here. /v1/chat/completions has 'logprobs' and "
            "'top_logprobs', for the models that support them.",
        )


def whole(
    completions: Sequence[Mapping[str, Any]], *, id: str, model: str, created: int
) -> dict[str, Any]:
    """Combine one `chat.completion` for each prompt into OpenAI's `text_completion`.

    Shape: `{"id", "object": "text_completion", "created", "model", "choices": [{"text", "index",
    "logprobs": null, "finish_reason"}], "usage"?}`; usage is summed. Thinking is left out.
    """
    together = combined(
        [{**each, "choices": list(objects(each.get("choices")))} for each in completions]
    )
    answer: dict[str, Any] = {**_head(id, model, created), "choices": []}
    for choice in together["choices"]:
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        answer["choices"].append(
            {
                "text": text if isinstance(text, str) else "",
                "index": choice["index"],
                "logprobs": None,
                "finish_reason": _finish(choice.get("finish_reason")) or "stop",
            }
        )
    if together.get("usage") is not None:
        answer["usage"] = together["usage"]
    return answer


class CompletionsEncoder:
    """Encodes chat chunks as chunks of a completion.

    Args:
        id, model, created: of the answer, whatever the chunks have.
        with_usage: the client requested it, so every chunk has a `usage`: null except in the last.
        size: the text counts against it.
    """

    ends_after_failure = False

    def __init__(
        self,
        *,
        id: str,
        model: str,
        created: int,
        with_usage: bool,
        size: AnswerSize | None = None,
    ) -> None:
        self._head = _head(id, model, created)
        self._size = AnswerSize() if size is None else size
        self._with_usage = with_usage
        # Nearly every event is a piece of text of the first choice.
        self._before = b"data: " + compact(self._head)[:-1].encode() + b',"choices":[{"text":'
        self._after = b',"index":0,"logprobs":null,"finish_reason":null}]'
        self._after += b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def feed(self, events: bytes) -> bytes:
        """Encode the texts, finish reasons and usage of some chunks."""
        return b"".join(self._encoded(event) for event in sse.events(events))

    def _encoded(self, event: bytes) -> bytes:
        chunk = sse.parse(event)
        if not isinstance(chunk, dict):
            return b""
        usage = chunk.get("usage")
        choices = list(_choices(chunk.get("choices")))
        for text, _, _ in choices:
            self._size.add_text(text)
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
        """Encode OpenAI's last line."""
        return sse.DONE

    def fail(self, error: ApiError) -> bytes:
        """Encode an error in place of a chunk, as the official SDKs expect it."""
        return error_event(error)

    def keep_alive(self, kind: str) -> bytes:
        """Return a comment, or a chunk without text."""
        return COMMENT if kind == "comment" else self._before + b'""' + self._after


def _choices(choices: Any) -> Iterator[tuple[str, int, str | None]]:
    """Text, index and finish reason of the choices of a chunk that have a text or a finish."""
    for choice in objects(choices):
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        text = text if isinstance(text, str) else ""
        finish = _finish(choice.get("finish_reason"))
        if text or finish:
            yield text, choice_number(choice), finish


def _finish(reason: Any) -> str | None:
    """Translate a finish reason to one that completions have; None before the finish."""
    if not reason or not isinstance(reason, str):
        return None
    return reason if reason in _FINISHES else "stop"


def _head(id: str, model: str, created: int) -> dict[str, Any]:
    return {"id": id, "object": _OBJECT, "created": created, "model": model}


# --- for upstreams that have completions themselves ---------------------------------------------


def native_body(request: CompletionsRequest, *, model: str) -> bytes:
    """Render the request for a server that supports all of it: the client's bytes, except for the
    model's name. The answer is never streamed.
    """
    changes: dict[str, Any] = {} if request.body.get("model") == model else {"model": model}
    if request.stream:
        changes["stream"] = False
    return request.body.render(changes, drop=("stream_options",))


def gap_body(request: CompletionsRequest, *, model: str) -> bytes:
    """Render the request for a coder model of Model Studio, with the gap in the model's template.

    Raises:
        BadRequest: such a model cannot answer it.
    """
    prompts = _plain_prompts(request)
    if len(prompts) > 1:
        raise unsupported(
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
    """Complete a server's own `text_completion` with the members that OpenAI's schema requires.

    Args:
        model: the client's name for it.

    Raises:
        UpstreamError: it has no list of choices.
    """
    choices = value.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise UpstreamError(
            "The upstream's answer is not a completion: it has no choices.",
            code="upstream_bad_answer",
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
    """Render a whole `text_completion` as the events of a complete stream.

    Raises:
        AnswerTooLarge: they would be too large.
    """
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    rest: dict[str, Any] = {"usage": None} if with_usage else {}
    choices = []
    for choice in answer["choices"]:
        choices.append({**choice, "finish_reason": None})
        choices.append({**choice, "text": "", "logprobs": None})
    events = [{**head, "choices": [choice], **rest} for choice in choices]
    if with_usage and answer.get("usage") is not None:
        events.append({**head, "choices": [], "usage": answer["usage"]})
    return b"".join([*as_events(events), sse.DONE])
