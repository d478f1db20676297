"""Reads forms that ask for a transcript, and renders them for a model."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.transcription.models import (
    FILE_MODEL,
    MOST_ENCODED,
    MOST_SECONDS,
    Road,
    asr_model,
)
from qwen_wsgi.protocol.transcription.sound import NAMES, Kind, kind_of, seconds_of
from qwen_wsgi.protocol.validation import bad_value, missing, unsupported

#: Why another model is asked than the named one; the beginning of messages.
WHY_FILES: Final = (
    "Only a model for files tells times, and takes sound of more than "
    f"{MOST_SECONDS / 60:g} minutes or 10 MB."
)

FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
#: Those that tell times.
_TIMED: Final = frozenset({"srt", "verbose_json", "vtt"})
_GRANULARITIES: Final = ("word", "segment")
_LANGUAGE: Final = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{2,8})*")
#: Of a turn before the sound (fun-asr-flash and qwen-audio-asr).
_HINT_CHARACTERS: Final = 400

_FLAGS: Final[Mapping[str, bool]] = {"true": True, "1": True, "false": False, "0": False}
#: Qwen's own parameters, which are true or false.
_OWN: Final = ("enable_itn", "disfluency_removal_enabled")
_READ: Final = frozenset(
    {"model", "file", "language", "prompt", "response_format", "stream", "user", *_OWN}
    | {"timestamp_granularities", "timestamp_granularities[]"}
)
#: Members of OpenAI that no model has, and what they are when they ask for nothing.
_NOTHING: Final[Mapping[str, tuple[str, ...]]] = {
    "temperature": ("0", "0.0"),
    "chunking_strategy": ("auto",),
}


@dataclass(frozen=True)
class TranscriptionRequest:
    """A checked request.

    Attributes:
        plays: how long the sound plays, as `seconds_of` tells it.
        words, segments: of `verbose_json`: which times are wanted.
        own: Qwen's own parameters.
        lost: members that no model has, by name.
    """

    model: str
    data: bytes = field(repr=False)
    kind: Kind
    plays: float | None = None
    format: str = "json"
    language: str = ""
    prompt: str = ""
    stream: bool = False
    words: bool = False
    segments: bool = True
    own: Mapping[str, bool] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    @property
    def is_long(self) -> bool:
        """Whether it is more sound than a model takes in a request."""
        too_long = self.plays is not None and self.plays > MOST_SECONDS
        return too_long or len(self.data) * 4 // 3 + 64 > MOST_ENCODED

    @property
    def seconds(self) -> float | None:
        """How long the sound plays; None if that is not known exactly."""
        return self.plays if self.plays is not None and math.isfinite(self.plays) else None

    @property
    def wants_times(self) -> bool:
        """Whether only a model for files can answer it."""
        return self.format in _TIMED


def parse_request(fields: Mapping[str, Sequence[str]], sound: bytes | None) -> TranscriptionRequest:
    """Read a request.

    Args:
        fields: of the form; each has all its values.
        sound: the file; None if there is none.

    Raises:
        BadRequest: a field is missing or wrong, or the file is no sound.
    """
    given = {name: values[-1] for name, values in fields.items() if values and values[-1] != ""}
    if sound is None and "file" in given:
        raise BadRequest(
            "Invalid 'file': it came as a field of text. A file's part needs a 'filename'.",
            param="file",
            code="invalid_value",
        )
    if sound is None:
        raise missing("file")
    if not sound:
        raise BadRequest("Invalid 'file': it is empty.", param="file", code="invalid_value")
    if not given.get("model"):
        raise missing("model")
    kind = kind_of(sound)
    if kind is None:
        raise BadRequest(
            f"Invalid 'file': its first bytes are of no format of sound ({', '.join(NAMES)}).",
            param="file",
            code="invalid_value",
        )
    format = given.get("response_format", "json")
    if format not in FORMATS:
        raise bad_value("response_format", format, FORMATS)
    stream = _flag(given, "stream") or False
    if stream and format not in ("json", "text"):
        raise unsupported("stream", f"A transcript as {format} is not streamed; use json.")
    granularities = _granularities(fields, format)
    return TranscriptionRequest(
        model=given["model"],
        data=sound,
        kind=kind,
        plays=seconds_of(sound),
        format=format,
        language=_language(given),
        prompt=given.get("prompt", ""),
        stream=stream,
        words="word" in granularities,
        segments=not granularities or "segment" in granularities,
        own={name: value for name in _OWN if (value := _flag(given, name)) is not None},
        lost=tuple(
            dict.fromkeys(
                _plain(name)
                for name, value in given.items()
                if name not in _READ and value not in _NOTHING.get(name, ())
            )
        ),
    )


def _plain(name: str) -> str:
    """The member's name: `include` of the form's `include[]`."""
    return name.partition("[")[0]


def _flag(given: Mapping[str, str], name: str) -> bool | None:
    if name not in given:
        return None
    value = _FLAGS.get(given[name].lower())
    if value is None:
        raise bad_value(name, given[name], ("true", "false"))
    return value


def _language(given: Mapping[str, str]) -> str:
    language = given.get("language", "")
    match = _LANGUAGE.fullmatch(language)
    if language and match is None:
        raise BadRequest(
            "Invalid 'language': expected a code of two or three letters, such as 'en' (ISO 639).",
            param="language",
            code="invalid_value",
        )
    return match[1].lower() if match else ""


def _granularities(fields: Mapping[str, Sequence[str]], format: str) -> set[str]:
    name = "timestamp_granularities"
    wanted = {*fields.get(name, ()), *fields.get(name + "[]", ())}
    for each in wanted:
        if each not in _GRANULARITIES:
            raise bad_value(name, each, _GRANULARITIES)
    if "word" in wanted and format != "verbose_json":
        raise BadRequest(
            f"'{name}' needs the response_format 'verbose_json'.", param=name, code="invalid_value"
        )
    return wanted


# --- for a model ---------------------------------------------------------------------------------


class Native(NamedTuple):
    """What a model is asked with."""

    body: bytes
    changed: tuple[str, ...]


def model_for_files(*, strict: bool) -> tuple[str, tuple[str, ...]]:
    """The model that answers by a task, and the change that this is.

    Raises:
        BadRequest: in strict mode, if it is not the one that the client named.
    """
    changes = Changes(strict=strict, reason="cannot stay as it is: ")
    changes.lose(
        "model",
        f"{WHY_FILES[0].lower()}{WHY_FILES[1:]} Name `{FILE_MODEL}`, which has its own price",
        what=FILE_MODEL,
    )
    return FILE_MODEL, changes.entries


def direct_call(
    request: TranscriptionRequest, *, model: str, stream: bool, strict: bool = False
) -> Native:
    """Render a request for a model that takes the sound in it.

    Raises:
        BadRequest: in strict mode, what would be lost.
    """
    changes = _lost(request, model, strict)
    url = f"data:{request.kind.content_type};base64,{base64.b64encode(request.data).decode()}"
    sound = {"type": "input_audio", "input_audio": {"data": url}}
    spoken = {"role": "user", "content": [sound]}
    if asr_model(model).road is Road.CHAT:
        hints = [{"role": "system", "content": request.prompt}] if request.prompt else []
        options: dict[str, Any] = _own(request, changes, "enable_itn")
        if request.language:
            options["language"] = request.language
        body: dict[str, Any] = {"model": model, "messages": [*hints, spoken], "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if options:
            body["asr_options"] = options
        return Native(compact(body).encode(), changes.entries)
    parameters: dict[str, Any] = _own(request, changes, "disfluency_removal_enabled")
    parameters["format"] = request.kind.name
    if request.language:
        parameters["language_hints"] = [request.language]
    prompt = request.prompt
    if len(prompt) > _HINT_CHARACTERS:
        changes.lose("prompt", "has more than 400 characters.", what="last-400-characters")
        prompt = prompt[-_HINT_CHARACTERS:]
    turn = {"role": "user", "content": [{"type": "input_text", "text": prompt}]}
    messages = [turn, spoken] if prompt else [spoken]
    body = {"model": model, "input": {"messages": messages}, "parameters": parameters}
    return Native(compact(body).encode(), changes.entries)


def file_call(
    request: TranscriptionRequest, url: str, *, model: str, strict: bool = False
) -> Native:
    """Render a request for a model that takes the URL of a file.

    Raises:
        BadRequest: in strict mode, what would be lost.
    """
    changes = _lost(request, model, strict)
    if request.prompt:
        changes.lose("prompt", "because models for files take none.")
    parameters: dict[str, Any] = {"channel_id": [0]}
    if asr_model(model).list_of_urls:
        parameters |= _own(request, changes, "disfluency_removal_enabled")
        if request.language:
            parameters["language_hints"] = [request.language]
        given: dict[str, Any] = {"file_urls": [url]}
    else:
        parameters |= _own(request, changes, "enable_itn")
        if request.language:
            parameters["language"] = request.language
        parameters["enable_words"] = request.words
        given = {"file_url": url}
    body = {"model": model, "input": given, "parameters": parameters}
    return Native(compact(body).encode(), changes.entries)


def _lost(request: TranscriptionRequest, model: str, strict: bool) -> Changes:
    changes = Changes(strict=strict, reason=f"cannot be sent to {model} ")
    for name in request.lost:
        changes.lose(name, "because Qwen's models have no such parameter")
    return changes


def _own(request: TranscriptionRequest, changes: Changes, taken: str) -> dict[str, bool]:
    """The one of Qwen's own parameters that the model has, if it is given."""
    for name in request.own:
        if name != taken:
            changes.lose(name, "because the model has no such parameter")
    return {taken: request.own[taken]} if taken in request.own else {}
