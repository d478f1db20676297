"""What a file of sound is, by its first bytes, and how long it plays, where its head tells it.

Formats: RIFF WAVE; MPEG 1 and 2 layer III (ISO 11172-3, 13818-3) with the Xing header; FLAC
(RFC 9639 §8.2); Ogg (RFC 3533 §6) with Opus (RFC 7845) or Vorbis; MP4 (ISO 14496-12 §8.2.2).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

#: Frames of MP3 that are counted: of the shortest ones, twice as much as a request may have.
_MOST_FRAMES: Final = 25_000

#: How far into a file its first frame, or its last page, is looked for.
_NEAR: Final = 64 * 1024


class Kind(NamedTuple):
    """A format of sound: its name, as Model Studio has it, and its content type."""

    name: str
    content_type: str


_WAV: Final = Kind("wav", "audio/wav")
_MP3: Final = Kind("mp3", "audio/mpeg")
_FLAC: Final = Kind("flac", "audio/flac")
_OGG: Final = Kind("ogg", "audio/ogg")
_MP4: Final = Kind("m4a", "audio/mp4")
_WEBM: Final = Kind("webm", "audio/webm")
_AAC: Final = Kind("aac", "audio/aac")
_AMR: Final = Kind("amr", "audio/amr")

#: Brands of pictures in the same container as MP4 (HEIF, ISO 23008-12; AVIF).
_PICTURES: Final = frozenset({b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis"})

#: For messages.
NAMES: Final = ("wav", "mp3", "flac", "ogg", "m4a", "mp4", "webm", "aac", "amr")


def kind_of(data: bytes) -> Kind | None:
    """The format of a file; None if it is none of sound."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _WAV
    if data[4:8] == b"ftyp":
        return None if data[8:12] in _PICTURES else _MP4
    for begin, kind in (
        (b"ID3", _MP3),
        (b"fLaC", _FLAC),
        (b"OggS", _OGG),
        (b"\x1a\x45\xdf\xa3", _WEBM),
        (b"#!AMR", _AMR),
    ):
        if data.startswith(begin):
            return kind
    if len(data) >= 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        layer = data[1] >> 1 & 3  # 0 is ADTS's, which AAC has
        return _AAC if layer == 0 else _MP3
    return None


def seconds_of(data: bytes) -> float | None:
    """How long a file plays; None where its head does not tell it, and infinite where it is more
    than anybody counts: hours of MP3 without a header that tells it."""
    kind = kind_of(data)
    read = None if kind is None else _READERS.get(kind.name)
    try:
        return None if read is None else read(data)
    except (struct.error, IndexError, ZeroDivisionError):
        return None  # it ends in its head


def _wav(data: bytes) -> float | None:
    place, rate = 12, 0
    while place + 8 <= min(len(data), _NEAR):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"fmt ":
            rate = struct.unpack_from("<I", data, place + 16)[0]  # bytes of a second
        elif name == b"data":
            rest = len(data) - place - 8
            # Who writes into a pipe does not know the size, and says 0 or the largest number.
            return float(min(size, rest) / rate) if size or not rest else None
        place += 8 + size + (size & 1)
    return None


#: kbit/s of layer III, by its number: of MPEG 1, and of MPEG 2 and 2.5.
_RATES_1: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_RATES_2: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SAMPLES: Final = (44_100, 48_000, 32_000)


def _mp3(data: bytes) -> float | None:
    begin = 0
    if data[:3] == b"ID3":
        a, b, c, d = data[6:10] if len(data) >= 10 else bytes(4)
        begin = 10 + ((a & 127) << 21 | (b & 127) << 14 | (c & 127) << 7 | d & 127)
    near = range(begin, min(len(data) - 4, begin + _NEAR))
    place = next((place for place in near if _frame(data, place) is not None), len(data))
    if (frame := _frame(data, place)) is None:
        return None
    first = data[place : place + 64]
    found = max(first.find(b"Xing"), first.find(b"Info"))
    if found >= 0 and first[found + 7] & 1:
        frames: int = struct.unpack_from(">I", data, place + found + 8)[0]
        return frames * frame.seconds
    # Without that header only the frames themselves tell it: their rates may differ.
    seconds, count = 0.0, 0
    while (frame := _frame(data, place)) is not None:
        if count == _MOST_FRAMES:
            return math.inf
        seconds, place, count = seconds + frame.seconds, place + frame.size, count + 1
    return seconds if len(data) - place <= _NEAR else None  # behind the frames are tags


class _Frame(NamedTuple):
    """One frame of layer III: bytes, and seconds."""

    size: int
    seconds: float


def _frame(data: bytes, place: int) -> _Frame | None:
    """The frame that begins there (ISO 11172-3 §2.4.1.3); None if none does."""
    head = int.from_bytes(data[place : place + 4], "big")
    if head >> 17 & 0x7FF3 != 0x7FF1:  # the mark, and layer III
        return None
    version, rate, sampling = head >> 19 & 3, head >> 12 & 15, head >> 10 & 3
    if version == 1 or not 0 < rate < 15 or sampling == 3:
        return None
    hertz = _SAMPLES[sampling] >> (0 if version == 3 else 1 if version == 2 else 2)
    samples, rates = (1152, _RATES_1) if version == 3 else (576, _RATES_2)
    size = samples // 8 * rates[rate] * 1000 // hertz + (head >> 9 & 1)
    return _Frame(size, samples / hertz)


def _flac(data: bytes) -> float | None:
    bits = int.from_bytes(data[18:26], "big")
    rate, samples = bits >> 44, bits & (1 << 36) - 1
    return samples / rate if samples else None


def _ogg(data: bytes) -> float | None:
    rate = 48_000 if b"OpusHead" in data[:256] else 0
    if (vorbis := data[:256].find(b"\x01vorbis")) >= 0:
        rate = struct.unpack_from("<I", data, vorbis + 12)[0]
    last = data.rfind(b"OggS", max(0, len(data) - _NEAR))
    samples: int = struct.unpack_from("<q", data, last + 6)[0]
    return samples / rate if samples > 0 else None


def _mp4(data: bytes) -> float | None:
    found = data.find(b"mvhd")
    if found < 0:
        return None
    if data[found + 4] == 1:
        scale, length = struct.unpack_from(">IQ", data, found + 24)
    else:
        scale, length = struct.unpack_from(">II", data, found + 16)
    # 0 in files of fragments; all bits for unknown.
    return None if length in (0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF) else float(length / scale)


_READERS: Final[dict[str, Callable[[bytes], float | None]]] = {
    "wav": _wav,
    "mp3": _mp3,
    "flac": _flac,
    "ogg": _ogg,
    "m4a": _mp4,
}
