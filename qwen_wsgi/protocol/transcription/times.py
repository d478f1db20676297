"""Transcripts with times: reads Model Studio's, renders `verbose_json`, SubRip and WebVTT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol import json_access

_SPACE: Final = re.compile(r"\s+")
_ARROW: Final = re.compile(r"--+>")


class Span(NamedTuple):
    """A text and its times, in milliseconds from the beginning of the sound."""

    begin: int
    end: int
    text: str


@dataclass(frozen=True)
class Timed:
    """A transcript with times.

    Attributes:
        language: as the upstream names it; "" if it does not.
    """

    text: str
    segments: tuple[Span, ...]
    words: tuple[Span, ...]
    language: str = ""


def read(document: Mapping[str, Any]) -> Timed:
    """Read the transcript that a task made; of its first channel.

    Raises:
        UpstreamError: it has a sentence, and no times for it.
    """
    nothing: dict[str, Any] = {}
    transcript = next(json_access.objects(document.get("transcripts")), nothing)
    segments, words, language = [], [], ""
    for sentence in json_access.objects(transcript.get("sentences")):
        span = _span(sentence, json_access.text(sentence.get("text")))
        if span is not None:
            segments.append(span)
        language = language or json_access.text(sentence.get("language"))
        for word in json_access.objects(sentence.get("words")):
            text = json_access.text(word.get("text"))
            if (span := _span(word, text.strip())) is not None:
                words.append(span)
    text = json_access.text(transcript.get("text"))
    return Timed(
        text or " ".join(each.text for each in segments), tuple(segments), tuple(words), language
    )


def _span(holder: Mapping[str, Any], text: str) -> Span | None:
    """A text with its times; None for no text."""
    if not text.strip():
        return None
    begin = json_access.integer(holder.get("begin_time"))
    end = json_access.integer(holder.get("end_time"))
    if begin is None or end is None or begin < 0 or end < begin:
        raise UpstreamError(
            "The upstream's transcript has no times for a part of it.", code="upstream_bad_answer"
        )
    return Span(begin, end, text)


def verbose(
    timed: Timed,
    *,
    seconds: float | None,
    usage: Mapping[str, Any] | None,
    words: bool,
    segments: bool,
) -> dict[str, Any]:
    """OpenAI's `verbose_json`. What Qwen does not measure, the probabilities, is 0.

    Args:
        seconds: how long the sound plays; None for the end of its last sentence.
    """
    last = max((each.end for each in timed.segments), default=0) / 1000
    value: dict[str, Any] = {
        "task": "transcribe",
        "language": timed.language,
        "duration": last if seconds is None else round(seconds, 3),
        "text": timed.text,
    }
    if words:
        value["words"] = [
            {"word": each.text, "start": each.begin / 1000, "end": each.end / 1000}
            for each in timed.words
        ]
    if segments:
        value["segments"] = [_segment(number, each) for number, each in enumerate(timed.segments)]
    if usage:
        value["usage"] = usage
    return value


def _segment(number: int, span: Span) -> dict[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": span.begin / 1000,
        "end": span.end / 1000,
        "text": span.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": 0.0,
        "no_speech_prob": 0.0,
    }


def srt(spans: Sequence[Span]) -> str:
    """SubRip: numbered cues, hours always, and a comma before the milliseconds."""
    return "".join(
        f"{number}\n{_time(each.begin, ',')} --> {_time(each.end, ',')}\n{_line(each.text)}\n\n"
        for number, each in enumerate(spans, 1)
    )


def vtt(spans: Iterable[Span]) -> str:
    """WebVTT (W3C, §4): `&` and `<` of a text are escaped."""
    cues = (
        f"{_time(each.begin, '.')} --> {_time(each.end, '.')}\n"
        + _line(each.text).replace("&", "&amp;").replace("<", "&lt;")
        + "\n\n"
        for each in spans
    )
    return "WEBVTT\n\n" + "".join(cues)


def _line(text: str) -> str:
    """A text as one line: an empty line would end the cue, and an arrow would begin one."""
    return _ARROW.sub("->", _SPACE.sub(" ", text).strip())


def _time(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{ms:03d}"
