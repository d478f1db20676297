"""What a file of sound is, and how long it plays."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.protocol.transcription.sound import kind_of, seconds_of

#: MPEG 1 layer III, 128 kbit/s at 44.1 kHz.
FRAME = b"\xff\xfb\x90\x64" + bytes(413)
#: The same at 32 kbit/s; and MPEG 2 at 64 kbit/s and 22.05 kHz, padded.
SLOW = b"\xff\xfb\x10\x64" + bytes(100)
MPEG2 = b"\xff\xf3\x82\x64" + bytes(205)
_BEGINS = (b"", b"ID3", b"\xff\xfb\x90", b"fLaC", b"OggS", b"RIFF____WAVE", b"____ftypmvhd")


def wav(data: bytes, *, size: int | None = None) -> bytes:
    head = struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    told = len(data) if size is None else size
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    return b"RIFF\0\0\0\0WAVEfmt " + head + extra + b"data" + struct.pack("<I", told) + data


def flac(rate: int, samples: int) -> bytes:
    return b"fLaC\0\0\0\x22" + bytes(10) + (rate << 44 | samples).to_bytes(8, "big") + bytes(16)


def page(samples: int, content: bytes) -> bytes:
    return b"OggS\0\0" + struct.pack("<q", samples) + bytes(13) + content


def mvhd(scale: int, length: int) -> bytes:
    return b"\0\0\0\x14ftypM4A \0\0\0\0....moovmvhd" + bytes(12) + struct.pack(">II", scale, length)


@pytest.mark.parametrize(
    ("data", "name", "seconds"),
    [
        (wav(bytes(64_000)), "wav", 2.0),
        (wav(bytes(32_000), size=0xFFFF_FFFF), "wav", 1.0),
        (FRAME * 100, "mp3", 100 * 1152 / 44_100),
        (b"ID3\4\0\0\0\0\0\x05" + b"\xff\xff\0\0\0" + FRAME * 10, "mp3", 10 * 1152 / 44_100),
        (
            FRAME[:36] + b"Xing" + struct.pack(">II", 1, 1000) + bytes(400),
            "mp3",
            1000 * 1152 / 44_100,
        ),
        ((FRAME + SLOW) * 5 + b"TAG" + bytes(125), "mp3", 10 * 1152 / 44_100),
        (FRAME * 2 + bytes(70_000), "mp3", None),
        (MPEG2 * 3, "mp3", 3 * 576 / 22_050),
        (SLOW * 25_001, "mp3", math.inf),
        (wav(bytes(32_000), size=0), "wav", None),
        (wav(b""), "wav", 0.0),
        (mvhd(1000, 0), "m4a", None),
        (mvhd(1000, 0xFFFF_FFFF), "m4a", None),
        (b"\0\0\0\x14ftypM4A ....mvhd\1" + bytes(19) + struct.pack(">IQ", 10, 50), "m4a", 5.0),
        (flac(48_000, 96_000), "flac", 2.0),
        (flac(48_000, 0), "flac", None),
        (page(0, b"\x01\x13OpusHead") + page(480_000, b"x"), "ogg", 10.0),
        (
            page(0, b"\x01vorbis" + bytes(4) + b"\x01" + struct.pack("<I", 44_100))
            + page(88_200, b""),
            "ogg",
            2.0,
        ),
        (mvhd(1000, 4500), "m4a", 4.5),
        (b"\x1a\x45\xdf\xa3webm", "webm", None),
        (b"\xff\xf1\x50\x80", "aac", None),
        (b"#!AMR\n", "amr", None),
    ],
)
def test_formats_and_lengths(data: bytes, name: str, seconds: float | None) -> None:
    kind = kind_of(data)

    assert kind is not None
    assert kind.name == name
    found = seconds_of(data)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("data", [b"", b"{}", b"\x89PNG\r\n\x1a\n", b"RIFF____AVI ", b"hello"])
def test_what_is_no_sound(data: bytes) -> None:
    assert kind_of(data) is None
    assert seconds_of(data) is None


@given(st.sampled_from(_BEGINS), st.binary(max_size=300))
def test_no_head_makes_it_fail(begin: bytes, rest: bytes) -> None:
    seconds = seconds_of(begin + rest)

    assert seconds is None or seconds >= 0
