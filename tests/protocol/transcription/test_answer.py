"""Transcripts as the models give them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import AnswerTooLarge, UpstreamError
from qwen_wsgi.protocol.transcription.answer import Transcript, url_of_result, usage_of


def heard(*values: dict[str, Any]) -> tuple[list[str], str]:
    transcript = Transcript(most_characters=1000)
    pieces = [transcript.see(value) for value in values]
    return [piece for piece in pieces if piece], transcript.text


def said(text: str) -> dict[str, Any]:
    return {"output": {"sentence": {"text": text}}}


def test_sentences_that_grow() -> None:
    pieces, text = heard(said("One"), said("One two. "), said("Three."))

    assert pieces == ["One", " two. ", "Three."]
    assert text == "One two. Three."


@given(st.text(alphabet="abc. ", max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_a_text_that_grows_comes_once(text: str, cuts: list[int]) -> None:
    pieces, found = heard(
        *({"output": {"text": text[:cut]}} for cut in sorted(cuts)), {"output": {"text": text}}
    )

    assert "".join(pieces) == text
    assert found == text.strip()


def test_the_whole_text_after_sentences_is_not_said_again() -> None:
    pieces, _ = heard(said("One. "), said("Two."), {"output": {"text": "One. Two."}})

    assert pieces == ["One. ", "Two."]


def test_pieces_of_text() -> None:
    pieces, text = heard({"output": {"text": "One "}}, {"output": {"text": "two."}})

    assert pieces == ["One ", "two."]
    assert text == "One two."


def test_sentences_that_are_corrected_come_when_they_are_complete() -> None:
    def told(text: str, *, end: bool) -> dict[str, Any]:
        return {"output": {"sentence": {"text": text, "sentence_end": end}}}

    pieces, text = heard(told("Won", end=False), told("One.", end=True), told(" Two.", end=True))
    assert pieces == ["One.", " Two."]
    assert text == "One. Two."


def test_the_end_tells_the_whole_text() -> None:
    pieces, text = heard(said("won."), {"output": {"text": "One."}})

    assert (pieces, text) == (["won."], "One.")


def test_a_limit() -> None:
    transcript = Transcript(most_characters=5)
    with pytest.raises(AnswerTooLarge):
        for _ in range(3):
            transcript.see({"choices": [{"delta": {"content": "abc"}}]})


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ({"seconds": 5}, {"type": "duration", "seconds": 5}),
        ({"duration": 1.5}, {"type": "duration", "seconds": 1.5}),
        (
            {"prompt_tokens": 3, "completion_tokens": 4, "seconds": 9},
            {"type": "tokens", "input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        ),
    ],
)
def test_usage(usage: Any, expected: Any) -> None:
    assert usage_of(usage) == expected


@pytest.mark.parametrize(
    "output",
    [
        {"result": {"transcription_url": "http://x"}},
        {"results": [{"transcription_url": "http://x", "subtask_status": "SUCCEEDED"}]},
    ],
)
def test_where_the_transcript_is(output: dict[str, Any]) -> None:
    assert url_of_result(output) == "http://x"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({}, "no reason"),
        ({"results": [{"code": "FILE_403_FORBIDDEN", "message": "m"}]}, "FILE_403_FORBIDDEN: m"),
        ({"result": {"transcription_url": 5}}, "no reason"),
    ],
)
def test_a_file_that_failed(output: dict[str, Any], words: str) -> None:
    with pytest.raises(UpstreamError, match=words):
        url_of_result(output)
