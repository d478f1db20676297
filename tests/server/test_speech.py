"""Speech: the official openai package against the running server."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy

pytestmark = pytest.mark.server

QWEN = "qwen3-tts-flash"
AUDIO = "qwen-audio-3.1-tts-flash"


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=2, timeout=10
    ) as made:
        yield made


def asked(sandbox: Sandbox) -> list[Any]:
    found = [r for r in sandbox.settle() if r.route in ("generation", "synthesizer")]
    return [json.loads(record.body or b"{}")["input"] for record in found]


def spoken(client: openai.OpenAI, **options: Any) -> tuple[bytes, Any]:
    given: dict[str, Any] = {"model": QWEN, "voice": "alloy", "input": "hello", **options}
    with client.audio.speech.with_streaming_response.create(**given) as answer:
        return answer.read(), answer.headers


def test_wav_of_a_model_that_makes_only_that(client: openai.OpenAI, sandbox: Sandbox) -> None:
    """Without `response_format` OpenAI's default is mp3, which the model has not."""
    sound, headers = spoken(client)

    assert headers["content-type"] == "audio/wav"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-qwen-proxy-changed"] == "response_format:wav, voice:Cherry"
    assert (sound[:4], sound[8:16]) == (b"RIFF", b"WAVEfmt ")
    assert struct.unpack("<HHI", sound[20:28]) == (1, 1, 24_000)
    assert len(sound) == 44 + 5 * 960
    assert asked(sandbox) == [{"text": "hello", "voice": "Cherry"}]


def test_pcm_has_no_head(client: openai.OpenAI) -> None:
    sound, headers = spoken(client, response_format="pcm", voice="Serena")

    assert headers["content-type"] == "audio/pcm"
    assert "x-qwen-proxy-changed" not in headers
    assert sound == bytes(5 * 960)


@pytest.mark.parametrize(
    ("format", "kind", "begins"),
    [
        (None, "audio/mpeg", b"\xff\xfb"),
        ("mp3", "audio/mpeg", b"\xff\xfb"),
        ("opus", "audio/ogg", b"OggS"),
        ("wav", "audio/wav", b"RIFF"),
        ("pcm", "audio/pcm", b"\x00\x00"),
    ],
)
def test_the_formats_of_a_model_with_a_choice(
    client: openai.OpenAI, sandbox: Sandbox, format: str | None, kind: str, begins: bytes
) -> None:
    options = {} if format is None else {"response_format": format}
    sound, headers = spoken(client, model=AUDIO, voice="longanhuan_v3.6", speed=3, **options)

    assert headers["content-type"] == kind
    assert sound.startswith(begins)
    assert headers["x-qwen-proxy-changed"] == "speed:2"
    (given,) = asked(sandbox)
    assert given["rate"] == 2.0
    assert given["format"] == ("pcm" if format in ("wav", "pcm") else format or "mp3")
    assert given.get("sample_rate") == (24_000 if format in ("wav", "pcm") else None)


def test_events(client: openai.OpenAI, proxy: Proxy) -> None:
    sound, headers = spoken(client, response_format="pcm", stream_format="sse", input="hello " * 10)
    events = [json.loads(line[6:]) for line in sound.decode().splitlines() if line]

    assert headers["content-type"].startswith("text/event-stream")
    assert {each["type"] for each in events[:-1]} == {"speech.audio.delta"}
    assert len(b"".join(base64.b64decode(each["audio"]) for each in events[:-1])) == 60 * 960
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"].keys() == {"input_tokens", "output_tokens", "total_tokens"}


def test_sound_arrives_before_its_end(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "generation", "spec": "stall-after=1"})
    given: Any = {"model": QWEN, "voice": "alloy", "input": "hello " * 50, "response_format": "pcm"}
    with client.audio.speech.with_streaming_response.create(**given) as answer:
        assert len(next(answer.iter_bytes(1000))) == 1000


def test_a_long_text_is_spoken_in_parts_that_are_joined(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(50))
    sound, headers = spoken(client, input=text, response_format="wav")

    parts = [each["text"] for each in asked(sandbox)]
    assert len(parts) > 1
    assert " ".join(parts) == text
    assert all(part.endswith(".") and len(part) <= 600 for part in parts)
    assert sound.count(b"RIFF") == 1
    assert len(sound) == 44 + 960 * sum(map(len, parts))
    assert f"input:{len(parts)}-parts" in headers["x-qwen-proxy-changed"]


def test_a_model_that_only_names_a_url(client: openai.OpenAI, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "generation", "spec": "no-pieces"})
    sound, _ = spoken(client, response_format="pcm")

    assert sound == bytes(5 * 960)
    assert [r.route for r in sandbox.settle()][-1] == "results"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"response_format": "mp3"}, "does not make mp3; it makes pcm, wav"),
        ({"response_format": "flac", "model": AUDIO}, "does not make flac"),
        ({"response_format": "ogg"}, "Supported values"),
        ({"input": ""}, "empty string"),
        ({"input": "x" * 20_001}, "at most 20000 characters"),
        ({"speed": 5}, "between 0.25 and 4"),
        ({"stream_format": "ws"}, "Supported values"),
        ({"model": "qwen3.7-plus"}, "POST /v1/chat/completions"),
        ({"model": AUDIO, "input": "x" * 10_001, "response_format": "opus"}, "cannot be joined"),
    ],
)
def test_what_cannot_be_done_is_said_clearly(
    client: openai.OpenAI, sandbox: Sandbox, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        spoken(client, **options)
    assert asked(sandbox) == []


def test_strict_mode_refuses_losses(sandbox: Sandbox, start_proxy: StartProxy) -> None:
    proxy = start_proxy(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_STRICT="1",
        QWEN_PROXY_VOICES="alloy=Momo",
    )
    with openai.OpenAI(base_url=proxy.base_url, api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="one speed only"):
            spoken(client, speed=2)
        with pytest.raises(openai.BadRequestError, match="takes none"):
            spoken(client, instructions="whisper")
        _, headers = spoken(client, response_format="wav")
    assert headers["x-qwen-proxy-changed"] == "voice:Momo"


@pytest.mark.parametrize(
    ("spec", "status"), [("inspection", 400), ("throttle", 429), ("lost-answer", 502)]
)
def test_failures_before_the_first_sound_have_their_status(
    client: openai.OpenAI, sandbox: Sandbox, spec: str, status: int
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        spoken(client.with_options(max_retries=0), input=f"hello [[sandbox: {spec}]]")

    assert raised.value.status_code == status
    if spec == "lost-answer":
        assert raised.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("spec", ["cut-after=1", "error-frame-after=1", "stall-after=1"])
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_a_sound_that_breaks_off_does_not_look_complete(
    proxy: Proxy, sandbox: Sandbox, spec: str, stream_format: str
) -> None:
    body = {
        "model": QWEN,
        "voice": "alloy",
        "input": f"hello [[sandbox: {spec}]] " + "x" * 100,
        "response_format": "pcm",
        "stream_format": stream_format,
    }
    headers = {
        "Authorization": f"Bearer {CLIENT_KEY}",
        "X-Request-Id": f"speech-{spec}-{stream_format}",
    }
    answer = requests.post(
        proxy.base_url + "/audio/speech", json=body, headers=headers, stream=True, timeout=10
    )
    assert answer.status_code == 200
    got = b""
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        for piece in answer.iter_content(None):
            got += piece
    if stream_format == "sse":
        assert json.loads(got.decode().splitlines()[-2][6:])["error"]["code"]
    line = proxy.wait_for_call(headers["X-Request-Id"])
    assert line["outcome"] == "upstream_error"


def test_a_client_that_leaves_stops_the_upstream(proxy: Proxy, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "generation", "spec": "stall-after=1"})
    body = {"model": QWEN, "voice": "alloy", "input": "x" * 500, "response_format": "pcm"}
    headers = {"Authorization": f"Bearer {CLIENT_KEY}", "X-Request-Id": "leaving-speech"}
    answer = requests.post(
        proxy.base_url + "/audio/speech", json=body, headers=headers, stream=True, timeout=10
    )
    next(answer.iter_content(100))
    answer.close()

    assert sandbox.wait_until(lambda: sandbox.requests[-1].outcome == "client_gone", 3)
    assert proxy.wait_for_call("leaving-speech")["outcome"] == "client_gone"
