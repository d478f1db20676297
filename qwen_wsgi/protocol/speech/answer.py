"""Reads the events of speech, and renders OpenAI's sound or events."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any

from qwen_wsgi.protocol import json_access, sse

#: A length that a streamed WAV cannot know yet; players read on to the end.
_UNKNOWN = 0xFFFF_FFFF
_WAV_HEAD_BYTES = 44


def sound_of(event: Mapping[str, Any]) -> bytes:
    """The sound in one event: `{"output": {"audio": {"data": <base64>}}}`; b"" if it has none."""
    data = json_access.mapping(json_access.mapping(event.get("output")).get("audio")).get("data")
    if not isinstance(data, str) or not data:
        return b""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return b""


def url_of(event: Mapping[str, Any]) -> str:
    """The URL of the whole sound, which the last event has; "" if it has none."""
    audio = json_access.mapping(json_access.mapping(event.get("output")).get("audio"))
    return json_access.text(audio.get("url"))


def samples_of(sound: bytes) -> bytes:
    """The samples of a sound that may begin with the head of a WAV file."""
    if sound[:4] == b"RIFF" and sound[8:12] == b"WAVE":
        return sound[_WAV_HEAD_BYTES:]
    return sound


def wav_head(rate: int) -> bytes:
    """The head of a WAV file of unknown length: 16 bits, one channel (RIFF WAVE, PCM)."""
    return b"".join(
        (
            b"RIFF",
            struct.pack("<I", _UNKNOWN),
            b"WAVEfmt ",
            struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16),
            b"data",
            struct.pack("<I", _UNKNOWN),
        )
    )


class Spoken:
    """Counts what was spoken, as the events tell it. Of each part of a text the last event counts.

    Attributes:
        characters: of the text, if the upstream counts them.
        input_tokens, output_tokens: if it counts those.
    """

    def __init__(self) -> None:
        self.characters = self.input_tokens = self.output_tokens = 0
        self._part: Mapping[str, Any] = {}

    def see(self, event: Mapping[str, Any]) -> None:
        """Note an event's usage."""
        self._part = json_access.mapping(event.get("usage")) or self._part

    def end_part(self) -> None:
        """Add the part that has ended."""
        part, self._part = self._part, {}
        self.characters += json_access.integer(part.get("characters")) or 0
        self.input_tokens += json_access.integer(part.get("input_tokens")) or 0
        self.output_tokens += json_access.integer(part.get("output_tokens")) or 0


def delta_event(sound: bytes) -> bytes:
    """OpenAI's `speech.audio.delta`."""
    value = {"type": "speech.audio.delta", "audio": base64.b64encode(sound).decode("ascii")}
    return sse.render(value)


def done_event(spoken: Spoken) -> bytes:
    """OpenAI's `speech.audio.done`."""
    given, made = spoken.input_tokens, spoken.output_tokens
    usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    return sse.render({"type": "speech.audio.done", "usage": usage})
