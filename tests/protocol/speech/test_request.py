"""Requests for speech, and what models are asked with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.speech import answer
from qwen_wsgi.protocol.speech.request import NativeSpeech, native_speech, parse_request


def native(model: str = "qwen3-tts-flash", *, strict: bool = False, **members: Any) -> NativeSpeech:
    body = {"model": model, "input": "hello", "voice": "Cherry", **members}
    request = parse_request(JsonObject(json.dumps(body).encode()))
    return native_speech(request, model=model, strict=strict)


def inputs(speech: NativeSpeech) -> list[dict[str, Any]]:
    return [json.loads(each)["input"] for each in speech.bodies]


def test_qwens_own_parameters_where_the_model_has_them() -> None:
    plain = native(language_type="English", response_format="wav")
    rich = native("cosyvoice-v3-flash", sample_rate=16_000, volume=60, pitch=1.1, seed=4)
    lost = native(volume=60, response_format="wav")

    assert inputs(plain) == [{"text": "hello", "language_type": "English", "voice": "Cherry"}]
    assert inputs(rich)[0]["sample_rate"] == 16_000
    assert inputs(rich)[0] | {"volume": 60, "pitch": 1.1, "seed": 4} == inputs(rich)[0]
    assert lost.changed == ("volume:dropped",)
    assert native("cosyvoice-v3", sample_rate=16_000, response_format="wav").rate == 16_000


def test_instructions_have_each_familys_name() -> None:
    assert inputs(native("qwen3-tts-instruct-flash", instructions="softly"))[0]["instructions"]
    assert inputs(native("qwen-audio-3.1-tts-plus", instructions="softly"))[0]["instruction"]
    assert "instructions:dropped" in native(instructions="softly").changed


@pytest.mark.parametrize(
    ("model", "voice", "sent"),
    [
        ("qwen3-tts-flash", "alloy", "Cherry"),
        ("qwen3-tts-flash", "ONYX", "Kai"),
        ("qwen3-tts-flash", "Momo", "Momo"),
        ("qwen3-tts-flash", {"id": "Momo"}, "Momo"),
        ("qwen3-tts-flash", None, "Cherry"),
        ("qwen-audio-3.1-tts-flash", "nova", "longanhuan_v3.6"),
        ("qwen-audio-3.1-tts-flash", "onyx", "longanlingxin"),
        ("cosyvoice-v3", "alloy", "alloy"),
        ("cosyvoice-v3", None, None),
    ],
)
def test_voices(model: str, voice: Any, sent: str | None) -> None:
    assert inputs(native(model, voice=voice))[0].get("voice") == sent


def test_other_members_are_dropped_by_their_names() -> None:
    assert "tempo:dropped" in native(tempo=5).changed
    with pytest.raises(BadRequest) as raised:
        native(tempo=5, strict=True)
    assert raised.value.param == "tempo"


@pytest.mark.parametrize("voice", [5, {"id": 5}, "x" * 201, []])
def test_a_voice_that_is_no_name(voice: Any) -> None:
    with pytest.raises(BadRequest):
        native(voice=voice)


_WORDS = st.text(alphabet="ab. !?。\n", min_size=1, max_size=2000).filter(str.strip)


@given(text=_WORDS)
def test_a_text_is_cut_without_losing_a_character(text: str) -> None:
    parts = [each["text"] for each in inputs(native("qwen-tts", input=text, response_format="pcm"))]

    assert all(0 < len(part) <= max(300, 0) for part in parts) or len(text) <= 300
    kept = "".join("".join(parts).split())
    assert kept == "".join(text.split())


def test_sounds_of_events() -> None:
    wav = answer.wav_head(24_000) + b"abcd"

    assert answer.samples_of(wav) == b"abcd"
    assert answer.samples_of(b"abcd") == b"abcd"
    assert answer.sound_of({"output": {"audio": {"data": "YWI="}}}) == b"ab"
    odds: list[Any] = [{}, {"output": 5}, {"output": {"audio": {"data": 5}}}]
    for odd in [*odds, {"output": {"audio": []}}]:
        assert answer.sound_of(odd) == b""
        assert answer.url_of(odd) == ""
    assert answer.sound_of({"output": {"audio": {"data": "***"}}}) == b""


def test_the_last_event_of_each_part_is_counted() -> None:
    spoken = answer.Spoken()
    for _ in range(2):
        for characters in (5, 5, 7):
            spoken.see({"usage": {"characters": characters, "input_tokens": 3, "output_tokens": 9}})
        spoken.see({"usage": None})
        spoken.end_part()

    assert (spoken.characters, spoken.input_tokens, spoken.output_tokens) == (14, 6, 18)
    assert b'"total_tokens":24' in answer.done_event(spoken)
