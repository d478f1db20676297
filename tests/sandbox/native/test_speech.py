"""The sandbox's speech, as the vendor's pages describe it."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import KEY, Answer, call

GENERATION = "/api/v1/services/aigc/multimodal-generation/generation"
SYNTHESIZER = "/api/v1/services/audio/tts/SpeechSynthesizer"


def spoken(
    sandbox: Sandbox, model: str = "qwen3-tts-flash", *, stream: bool = False, **given: Any
) -> Answer:
    body = {"model": model, "input": {"text": "hello", "voice": "Cherry", **given}}
    headers = {
        "Authorization": f"Bearer {KEY}",
        **({"X-DashScope-SSE": "enable"} if stream else {}),
    }
    path = GENERATION if model.startswith("qwen3-tts") else SYNTHESIZER
    return call(sandbox, "POST", path, body, headers)


def events(answer: Answer) -> list[Any]:
    return [json.loads(data)["output"]["audio"] for data in answer.payloads]


def test_a_whole_answer_has_a_url_and_a_stream_pieces_before_it(sandbox: Sandbox) -> None:
    whole = spoken(sandbox).json()
    pieces = events(spoken(sandbox, stream=True))
    none = events(spoken(sandbox, stream=True, text="[[sandbox: no-pieces]]"))

    file = call(sandbox, "GET", urlsplit(whole["output"]["audio"]["url"]).path)
    assert (file.headers["content-type"], file.body[:4]) == ("audio/wav", b"RIFF")
    assert whole["usage"] == {"characters": 5}
    samples = b"".join(base64.b64decode(each["data"]) for each in pieces)
    assert file.body[44:] == samples
    assert pieces[-1]["url"] and not pieces[0]["url"]
    assert len(none) == 1 and none[0]["url"]


@pytest.mark.parametrize(
    ("format", "begins"),
    [("mp3", b"\xff\xfb"), ("wav", b"RIFF"), ("pcm", b"\0"), ("opus", b"OggS")],
)
def test_formats_of_the_synthesizer(sandbox: Sandbox, format: str, begins: bytes) -> None:
    pieces = events(spoken(sandbox, "cosyvoice-v3-flash", stream=True, format=format))

    assert base64.b64decode(pieces[0]["data"]).startswith(begins)


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        ("qwen3-tts-flash", {"text": ""}, "input.text"),
        ("qwen3-tts-flash", {"text": "x" * 601}, "Range of input length"),
        ("qwen3-tts-flash", {"voice": "alloy"}, "not supported"),
        ("qwen3-tts-flash", {"instructions": "x"}, "instructions"),
        ("qwen3-tts-flash", {"format": "mp3"}, "unknown parameter"),
        ("cosyvoice-v3", {"text": 5}, "input.text"),
        ("cosyvoice-v3", {"voice": None}, "input.voice"),
        ("cosyvoice-v3", {"format": "flac"}, "format must be"),
        ("cosyvoice-v3", {"rate": 3}, "rate must be"),
    ],
)
def test_limits(sandbox: Sandbox, model: str, given: dict[str, Any], words: str) -> None:
    answer = spoken(sandbox, model, **given)

    assert (answer.status, answer.json()["code"]) == (400, "InvalidParameter")
    assert words in answer.json()["message"]
