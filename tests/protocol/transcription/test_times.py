"""Transcripts with times: `verbose_json`, SubRip and WebVTT."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol.transcription import times
from qwen_wsgi.protocol.transcription.times import Span

_TIMES = st.integers(0, 360_000_000)
_SAID = (st.text(max_size=40) | st.text("->\n &<a", max_size=20)).filter(str.strip)
_SPANS = st.lists(
    st.tuples(_TIMES, st.integers(0, 100_000), _SAID).map(
        lambda each: Span(each[0], each[0] + each[1], each[2])
    ),
    max_size=8,
)


def document(*sentences: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"transcripts": [{"channel_id": 0, "sentences": list(sentences), **members}]}


def test_subrip_and_webvtt() -> None:
    spans = [Span(0, 1500, "Tom & <Jerry>"), Span(3_661_007, 3_662_000, "a --> b\n\nc")]

    assert times.srt(spans) == (
        "1\n00:00:00,000 --> 00:00:01,500\nTom & <Jerry>\n\n"
        "2\n01:01:01,007 --> 01:01:02,000\na -> b c\n\n"
    )
    assert times.vtt(spans) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nTom &amp; &lt;Jerry>\n\n"
        "01:01:01.007 --> 01:01:02.000\na -> b c\n\n"
    )
    assert times.srt([]) == ""
    assert times.vtt([]) == "WEBVTT\n\n"


def _ms(clock: str) -> int:
    hours, minutes, seconds, ms = map(int, re.split(r"[:,.]", clock))
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms


@given(_SPANS)
def test_every_text_is_one_cue_with_its_own_times(spans: list[Span]) -> None:
    """Whatever the text holds, it neither ends a cue nor begins one."""
    blocks = times.srt(spans).split("\n\n")[:-1]
    cues = times.vtt(spans).split("\n\n")[1:-1]

    assert len(blocks) == len(cues) == len(spans)
    for number, (block, cue, span) in enumerate(zip(blocks, cues, spans, strict=True), 1):
        counted, line, said = block.split("\n")
        assert int(counted) == number
        assert tuple(map(_ms, line.split(" --> "))) == (span.begin, span.end)
        assert "-->" not in said
        line, said = cue.split("\n")
        assert tuple(map(_ms, line.split(" --> "))) == (span.begin, span.end)
        assert "<" not in said


def test_the_first_channel_counts() -> None:
    first = {"text": "one", "begin_time": 0, "end_time": 10, "language": "zh"}
    found = document(first, text="one")
    found["transcripts"].append({"sentences": [{**first, "text": "two"}]})

    timed = times.read(found)
    assert (timed.text, timed.segments, timed.language) == ("one", (Span(0, 10, "one"),), "zh")


@pytest.mark.parametrize("found", [{}, {"transcripts": 5}, document(), document(text=None)])
def test_silence(found: dict[str, Any]) -> None:
    timed = times.read(found)

    assert (timed.text, timed.segments) == ("", ())
    assert times.verbose(timed, seconds=None, usage=None, words=True, segments=True) == {
        "task": "transcribe",
        "language": "",
        "duration": 0,
        "text": "",
        "words": [],
        "segments": [],
    }


@pytest.mark.parametrize(
    "times_told", [{}, {"begin_time": 5}, {"begin_time": 5, "end_time": 4}, {"begin_time": "1"}]
)
def test_times_are_not_invented(times_told: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError, match="no times"):
        times.read(document({"text": "one", **times_told}))
