"""Reads requests for speech, and renders them for a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.json_access import Members
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.speech.models import SAMPLE_RATE, SpeechModel, speech_model
from qwen_wsgi.protocol.validation import bad_value, unsupported, wrong_type

#: Of a text; OpenAI's own limit is 4096. Each piece of a long one is a call.
MOST_CHARACTERS: Final = 20_000
#: OpenAI's formats, and the types of their contents.
CONTENT_TYPES: Final[Mapping[str, str]] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
#: Formats whose pieces can be put behind one another.
_JOINED: Final = frozenset({"pcm", "wav", "mp3"})
_SPEEDS: Final = (0.25, 4.0)
_RATES: Final = (0.5, 2.0)

#: Qwen's own parameters, by the kind of route that has them.
_OF_INPUT: Final = ("language_type", "optimize_instructions", "language_hints", "seed")
_OF_SYNTHESIZER: Final = ("sample_rate", "volume", "rate", "pitch", "bit_rate", "enable_ssml")
_READ: Final = frozenset(
    {"model", "input", "voice", "response_format", "speed", "instructions", "stream_format"}
    | {"user", "extra_body", "stream"}
).union(_OF_INPUT, _OF_SYNTHESIZER)

#: Where a text is cut: behind the end of a sentence, of Latin scripts or of Chinese and Japanese.
_SENTENCE: Final = re.compile(r"(?<=[.!?…;])\s+|(?<=[。！？；])|\n+")


@dataclass(frozen=True)
class SpeechRequest:
    """A checked request.

    Attributes:
        format: OpenAI's word, or None for the model's best.
        events: the answer is a stream of server-sent events instead of the sound itself.
        own: Qwen's own parameters.
        lost: members that no model has, by name.
    """

    model: str
    text: str
    voice: str
    format: str | None = None
    speed: float | None = None
    instructions: str | None = None
    events: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


def parse_request(body: JsonObject) -> SpeechRequest:
    """Read a request.

    Raises:
        BadRequest: a member is missing or wrong.
    """
    text = validation.required_text(body, "input")
    if not text.strip():
        raise BadRequest("Invalid 'input': empty string.", param="input", code="empty_string")
    if len(text) > MOST_CHARACTERS:
        raise BadRequest(
            f"Invalid 'input': at most {MOST_CHARACTERS} characters are spoken by one call.",
            param="input",
            code="string_above_max_length",
        )
    format = validation.text(body, "response_format")
    if format is not None and format not in CONTENT_TYPES:
        raise bad_value("response_format", format, tuple(CONTENT_TYPES))
    stream_format = validation.text(body, "stream_format") or "audio"
    if stream_format not in ("audio", "sse"):
        raise bad_value("stream_format", stream_format, ("audio", "sse"))
    speed = validation.number(body, "speed")
    if speed is not None and not _SPEEDS[0] <= speed <= _SPEEDS[1]:
        raise BadRequest(
            "Invalid 'speed': expected a value between 0.25 and 4.",
            param="speed",
            code="decimal_out_of_range",
        )
    names = body.names()
    return SpeechRequest(
        model=validation.model_of(body),
        text=text,
        voice=_voice(body),
        format=format,
        speed=speed,
        instructions=validation.text(body, "instructions"),
        events=stream_format == "sse",
        own={
            name: body.get(name)
            for name in (*_OF_INPUT, *_OF_SYNTHESIZER)
            if body.get(name) is not None
        },
        lost=tuple(name for name in names if name not in _READ and body.get(name) is not None),
    )


def _voice(body: Members) -> str:
    voice = body.get("voice")
    if isinstance(voice, dict):
        voice = voice.get("id")  # OpenAI's own voices of a customer
    if voice is None:
        return ""
    if not isinstance(voice, str) or len(voice) > 200:
        raise wrong_type("voice", "the name of a voice", voice)
    return voice


# --- for a model ---------------------------------------------------------------------------------


class NativeSpeech(NamedTuple):
    """What a model is asked with: one body for each part of the text.

    Attributes:
        format: of the answer, in OpenAI's word.
        samples: the model sends samples, of which the answer is made.
    """

    path: str
    bodies: list[bytes]
    format: str
    samples: bool
    rate: int
    changed: tuple[str, ...]


def native_speech(
    request: SpeechRequest, *, model: str, voices: Mapping[str, str] = {}, strict: bool = False
) -> NativeSpeech:
    """Render a request for a model.

    Args:
        voices: the operator's: names that clients send, and what they stand for.

    Raises:
        BadRequest: a format that the model lacks; a text that is too long for a format whose
            pieces cannot be joined; in strict mode, what would be lost.
    """
    family = speech_model(model)
    changes = Changes(strict=strict, reason=f"cannot be sent to {model} ")
    format = _format(request, family, model, changes)
    samples = format in ("pcm", "wav")
    parts = _parts(request.text, family.most)
    if len(parts) > 1 and format not in _JOINED:
        raise BadRequest(
            f"Invalid 'input': the model `{model}` speaks at most {family.most} characters, and "
            f"pieces of {format} cannot be joined. Use mp3, wav or pcm, or a shorter text.",
            param="input",
            code="string_above_max_length",
        )
    if len(parts) > 1:
        changes.note("input", f"{len(parts)}-parts")
    for name in request.lost:
        changes.lose(name, "because Qwen's models have no such parameter.")
    given = _parameters(request, family, changes)
    if voice := _voice_for(request.voice, family, voices, changes):
        given["voice"] = voice
    if family.settable:
        given["format"] = "pcm" if samples else format
        if samples:
            given.setdefault("sample_rate", SAMPLE_RATE)
    rate = given.get("sample_rate", SAMPLE_RATE)
    bodies = [
        compact({"model": model, "input": {"text": part, **given}}).encode() for part in parts
    ]
    return NativeSpeech(
        family.path,
        bodies,
        format,
        samples,
        rate if isinstance(rate, int) else SAMPLE_RATE,
        changes.entries,
    )


def _format(request: SpeechRequest, family: SpeechModel, model: str, changes: Changes) -> str:
    if request.format is None:
        if "mp3" in family.encoded:
            return "mp3"
        changes.note("response_format", "wav")
        return "wav"
    if request.format in ("pcm", "wav") or request.format in family.encoded:
        return request.format
    able = sorted(family.encoded | {"pcm", "wav"})
    raise unsupported(
        "response_format",
        f"The model `{model}` does not make {request.format}; it makes {', '.join(able)}.",
    )


def _parameters(request: SpeechRequest, family: SpeechModel, changes: Changes) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in request.own.items():
        if name in _OF_SYNTHESIZER and not family.settable:
            changes.lose(name, "because the model has no such parameter.")
        else:
            given[name] = value
    if request.speed is not None and request.speed != 1.0:
        if family.speed:
            rate = min(max(request.speed, _RATES[0]), _RATES[1])
            if rate != request.speed:
                changes.lose("speed", "because the model speaks at 0.5 to 2.", what=f"{rate:g}")
            given["rate"] = rate
        else:
            changes.lose("speed", "because the model has one speed only.")
    if request.instructions:
        if family.instructions:
            given[family.instructions] = request.instructions
        else:
            changes.lose("instructions", "because the model takes none.")
    return given


def _voice_for(
    wanted: str, family: SpeechModel, voices: Mapping[str, str], changes: Changes
) -> str:
    """The model's voice for the client's; a name that is not OpenAI's is the model's own."""
    known = {**(family.voices or {}), **voices}
    name = wanted or ("alloy" if "alloy" in known else "")
    voice = known.get(name, known.get(name.lower(), name))
    if wanted and voice != wanted:
        changes.note("voice", voice)
    return voice


def _parts(text: str, most: int) -> list[str]:
    """Cut a text into parts of at most so many characters, where sentences end."""
    if len(text) <= most:
        return [text]
    parts: list[str] = []
    held = ""
    for sentence in _SENTENCE.split(text):
        for piece in _pieces(sentence.strip(), most):
            if held and len(held) + 1 + len(piece) > most:
                parts.append(held)
                held = ""
            held = f"{held} {piece}" if held else piece
    if held:
        parts.append(held)
    return parts


def _pieces(sentence: str, most: int) -> list[str]:
    """A sentence that is longer than a part may be, cut between words, or anywhere."""
    pieces = []
    while len(sentence) > most:
        cut = sentence.rfind(" ", 1, most + 1)
        cut = most if cut < 1 else cut
        pieces.append(sentence[:cut].strip())
        sentence = sentence[cut:].strip()
    return [*pieces, sentence] if sentence else pieces
