"""Speech as Model Studio's native API makes it: limits, refusals, pieces and files. Pure.

The sound is silence, of a length that follows from the text.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from qwen_wsgi.sandbox.errors import Refusal

Json = dict[str, Any]
#: Keeps a sound by its name and content type; its URL.
Keep = Callable[[str, str, bytes], str]

_RATE: Final = 24_000
_PIECE_BYTES: Final = 4800
_TYPES: Final = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm", "opus": "audio/ogg"}
_VOICES: Final = frozenset(
    [
        "Cherry",
        "Serena",
        "Ethan",
        "Chelsie",
        "Momo",
        "Vivian",
        "Moon",
        "Maia",
        "Kai",
        "Nofish",
        "Bella",
        "Jennifer",
        "Ryan",
        "Katerina",
        "Aiden",
    ]
)
#: One frame of MPEG 1 layer III, 128 kbit/s at 44.1 kHz, of zeros.
_FRAME: Final = b"\xff\xfb\x90\x64" + bytes(413)


def has(model: str) -> bool:
    """Whether a model speaks by the route for everything that is made at once."""
    return model.startswith(("qwen3-tts", "qwen-tts"))


def generate(body: Json) -> tuple[bytes, str, int] | Refusal:
    """The sound of qwen3-tts: samples, their format, and the characters of the text."""
    given = body.get("input")
    given = given if isinstance(given, dict) else {}
    text, model = given.get("text"), str(body.get("model"))
    if not isinstance(text, str) or not text:
        return _invalid("Field required: input.text")
    if len(text) > 600:
        return _invalid("Range of input length should be [0, 600]")
    if given.get("voice") not in _VOICES:
        return _invalid("Voice '" + str(given.get("voice")) + "' is not supported.")
    if "instructions" in given and "instruct" not in model:
        return _invalid("instructions is not supported by this model")
    unknown = set(given) - {"text", "voice", "language_type", "instructions"}
    if unknown - {"optimize_instructions"}:
        return _invalid(f"unknown parameter {sorted(unknown)[0]}")
    return _samples(text, _RATE), "wav", len(text)


def synthesize(body: Json) -> tuple[bytes, str, int] | Refusal:
    """The sound of qwen-audio-*-tts and cosyvoice: encoded as asked for."""
    given = body.get("input")
    given = given if isinstance(given, dict) else {}
    text = given.get("text")
    if not isinstance(text, str) or not text:
        return _invalid("Field required: input.text")
    if not isinstance(given.get("voice"), str):
        return _invalid("Field required: input.voice")
    format = given.get("format", "mp3")
    if format not in _TYPES:
        return _invalid("format must be one of mp3, wav, pcm, opus")
    rate = given.get("rate", 1.0)
    if not isinstance(rate, int | float) or not 0.5 <= rate <= 2:
        return _invalid("rate must be between 0.5 and 2.0")
    samples = _samples(text, int(given.get("sample_rate", 22_050)))
    if format == "mp3":
        return _FRAME * max(1, len(text) // 3), "mp3", len(text)
    if format == "wav":
        return _wav(samples, int(given.get("sample_rate", 22_050))), "wav", len(text)
    if format == "opus":
        return b"OggS" + bytes(60 * len(text)), "opus", len(text)
    return samples, "pcm", len(text)


def answer(sound: bytes, format: str, characters: int, keep: Keep) -> Json:
    """The whole answer: only the URL of a file."""
    data = _wav(sound, _RATE) if format == "wav" and sound[:4] != b"RIFF" else sound
    url = keep(f"speech.{format}", _TYPES[format], data)
    audio = {"url": url, "data": "", "id": "audio_sandbox", "expires_at": 0}
    return {
        "output": {"audio": audio, "finish_reason": "stop"},
        "usage": {"characters": characters},
    }


def events(
    sound: bytes, format: str, characters: int, keep: Keep, *, pieces: bool = True
) -> Iterator[Json]:
    """The events of a stream: pieces of the sound, and at last its URL."""
    for place in range(0, len(sound) if pieces else 0, _PIECE_BYTES):
        data = base64.b64encode(sound[place : place + _PIECE_BYTES]).decode("ascii")
        yield {
            "output": {"audio": {"data": data, "url": ""}, "finish_reason": "null"},
            "usage": {"characters": characters},
        }
    yield answer(sound, format, characters, keep)


def _samples(text: str, rate: int) -> bytes:
    """Twenty milliseconds for each character, 16 bits a sample."""
    return bytes(2 * (rate // 50)) * len(text)


def _wav(samples: bytes, rate: int) -> bytes:
    head = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    size = struct.pack("<I", 36 + len(samples))
    return b"RIFF" + size + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(samples)) + samples


def _invalid(message: str) -> Refusal:
    return Refusal(400, "InvalidParameter", message, form="native")
