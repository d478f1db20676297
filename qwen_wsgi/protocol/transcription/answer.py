"""Reads transcripts as the models give them, and renders OpenAI's answers and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_wsgi.errors import AnswerTooLarge, UpstreamError
from qwen_wsgi.protocol import json_access, sse


class Transcript:
    """The text of a sound, as an answer or its events give it.

    Attributes:
        usage: OpenAI's form of it; None if the upstream told none.
        seconds: of sound, as the upstream counted them; None if it did not.
        finished: an event said that it is the end.
    """

    def __init__(self, *, most_characters: int) -> None:
        self.usage: dict[str, Any] | None = None
        self.seconds: float | None = None
        self.finished = False
        self._most = most_characters
        self._pieces: list[str] = []
        self._length = 0
        #: The sentence that is being spoken, as far as it came; None before the first one.
        self._sentence: str | None = None
        #: The whole text, where it differs from its pieces: sentences are corrected at the end.
        self._corrected = ""

    @property
    def text(self) -> str:
        return (self._corrected or "".join(self._pieces)).strip()

    def see(self, value: Mapping[str, Any]) -> str:
        """Read an answer or an event; the new text in it.

        Raises:
            AnswerTooLarge: it is more text than the proxy takes.
        """
        self.usage = usage_of(usage := value.get("usage")) or self.usage
        if (seconds := seconds_of(usage)) is not None:
            self.seconds = seconds
        output = value.get("output")
        new = self._of_output(output) if isinstance(output, dict) else self._of_choices(value)
        self._length += len(new)
        if max(self._length, len(self._corrected)) > self._most:
            raise AnswerTooLarge("is larger than the limit (QWEN_PROXY_MAX_ANSWER on the server)")
        if new:
            self._pieces.append(new)
        return new

    def _of_choices(self, value: Mapping[str, Any]) -> str:
        """A chunk, or a whole completion, of chat."""
        new = ""
        for choice in json_access.objects(value.get("choices")):
            message = json_access.mapping(choice.get("delta") or choice.get("message"))
            new += json_access.text(message.get("content"))
            self.finished |= bool(choice.get("finish_reason"))
        return new

    def _of_output(self, output: Mapping[str, Any]) -> str:
        """The native form: the sentence that is being spoken, or, in `text`, the text so far or
        the next piece of it: no page tells which."""
        if text := json_access.text(output.get("text")):
            # Put together only where it may be a part of what came, which is as long then.
            if len(text) >= self._length and text.startswith("".join(self._pieces)):
                return text[self._length :]
            if self._sentence is None:
                return text
            self._corrected = text
            return ""
        sentence = json_access.mapping(output.get("sentence"))
        text = json_access.text(sentence.get("text"))
        if "sentence_end" in sentence:
            # Until then it may be corrected, and what was sent cannot be taken back.
            self._sentence = ""
            return text if sentence["sentence_end"] is True else ""
        held, self._sentence = self._sentence or "", text
        # A sentence comes again as it grows, until the next one begins.
        return text[len(held) :] if text.startswith(held) else text


def usage_of(usage: Any) -> dict[str, Any] | None:
    """OpenAI's usage of a transcription: tokens, or else seconds; None if there is neither."""
    told = json_access.mapping(usage)
    given = json_access.integer(told.get("prompt_tokens", told.get("input_tokens")))
    made = json_access.integer(told.get("completion_tokens", told.get("output_tokens")))
    if given is not None and made is not None:
        return {
            "type": "tokens",
            "input_tokens": given,
            "output_tokens": made,
            "total_tokens": given + made,
        }
    seconds = seconds_of(told)
    return None if seconds is None else {"type": "duration", "seconds": seconds}


def seconds_of(usage: Any) -> float | None:
    """Seconds of sound that the upstream counted; None if it told none."""
    told = json_access.mapping(usage)
    for name in ("seconds", "duration"):
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
            return value
    return None


def json_answer(text: str, usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """OpenAI's `json`."""
    return {"text": text, "usage": usage} if usage else {"text": text}


def delta_event(piece: str) -> bytes:
    """OpenAI's `transcript.text.delta`."""
    return sse.render({"type": "transcript.text.delta", "delta": piece})


def done_event(text: str, usage: Mapping[str, Any] | None) -> bytes:
    """OpenAI's `transcript.text.done`."""
    return sse.render({"type": "transcript.text.done", **json_answer(text, usage)})


def url_of_result(output: Mapping[str, Any]) -> str:
    """The URL of the transcript in the output of a task.

    Raises:
        UpstreamError: the only file failed, or nothing names a URL.
    """
    # There is one file, whether it comes as itself or in a list.
    alone = json_access.mapping(output.get("result"))
    result = next(json_access.objects(output.get("results")), alone)
    url = json_access.text(result.get("transcription_url"))
    if url:
        return url
    code = json_access.text(result.get("code")) or json_access.text(output.get("code"))
    message = json_access.text(result.get("message")) or json_access.text(output.get("message"))
    raise UpstreamError(
        f"The upstream could not transcribe the file: {code[:64] or 'no reason'}"
        + (f": {message[:500]}" if message else "")
        + ".",
        code="upstream_task_failed",
        should_retry=False,
    )
