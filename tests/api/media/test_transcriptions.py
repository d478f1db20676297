"""Transcripts without a server of their own, in front of the sandbox."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from urllib3 import encode_multipart_formdata
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.native.asr import TEXT
from tests.api.apps import UPSTREAM_KEY, App, running

FLASH = "qwen3-asr-flash"
AUDIO = "qwen-audio-3.1-asr-flash"
FILES = "qwen3-asr-flash-filetrans"


def wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    data = bytes(int(seconds * rate))
    head = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
    size = struct.pack("<I", 36 + len(data))
    return b"RIFF" + size + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as started:
        yield started


@pytest.fixture
def app(sandbox: Sandbox) -> Iterator[App]:
    with running(DASHSCOPE_BASE_URL=sandbox.base_url, DASHSCOPE_API_KEY=UPSTREAM_KEY) as made:
        yield made


def transcribed(app: App, sound: bytes | None = None, **fields: Any) -> TestResponse:
    parts: list[tuple[str, Any]] = [("file", ("speech.bin", wav() if sound is None else sound))]
    for name, value in {"model": FLASH, **fields}.items():
        parts += [(name, each) for each in (value if isinstance(value, list) else [value])]
    # Werkzeug's own would put a large one into a file.
    body, kind = encode_multipart_formdata(parts)
    return app.client.post("/v1/audio/transcriptions", data=body, content_type=kind)


def asked(sandbox: Sandbox, route: str) -> dict[str, Any]:
    (record,) = [each for each in sandbox.settle() if each.route == route]
    found: dict[str, Any] = json.loads(record.body or b"{}")
    return found


def test_a_model_of_chat_is_asked_with_the_sound_the_prompt_and_the_language(
    app: App, sandbox: Sandbox
) -> None:
    answer = transcribed(app, language="en-US", prompt="Qwen, Wan", enable_itn="true")

    assert answer.json["text"] == TEXT  # type: ignore[index]  # it is JSON
    assert answer.json["usage"]["type"] == "tokens"  # type: ignore[index]  # it is JSON
    assert "x-qwen-proxy-changed" not in answer.headers
    body = asked(sandbox, "chat")
    assert body["asr_options"] == {"language": "en", "enable_itn": True}
    assert body["messages"][0] == {"role": "system", "content": "Qwen, Wan"}
    (part,) = body["messages"][1]["content"]
    assert part["input_audio"]["data"].startswith("data:audio/wav;base64,UklGR")


def test_a_native_model_is_asked_with_its_own_form(app: App, sandbox: Sandbox) -> None:
    answer = transcribed(app, model=AUDIO, language="de", prompt="x" * 500, temperature="0.5")

    assert answer.json["text"] == TEXT  # type: ignore[index]  # it is JSON
    assert answer.headers["x-qwen-proxy-changed"] == (
        "temperature:dropped, prompt:last-400-characters"
    )
    body = asked(sandbox, "generation")
    assert body["parameters"] == {"format": "wav", "language_hints": ["de"]}
    hint, spoken = body["input"]["messages"]
    assert hint["content"] == [{"type": "input_text", "text": "x" * 400}]
    assert spoken["content"][0]["type"] == "input_audio"


@pytest.mark.parametrize("model", [FLASH, AUDIO, FILES])
def test_plain_text(app: App, model: str) -> None:
    answer = transcribed(app, model=model, response_format="text")

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == TEXT + "\n"
    assert app.calls[-1]["outcome"] == "complete"


@pytest.mark.parametrize("model", [FLASH, AUDIO, FILES])
def test_events(app: App, model: str) -> None:
    answer = transcribed(app, model=model, stream="true")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    answer.close()

    assert {each["type"] for each in events[:-1]} == {"transcript.text.delta"}
    assert "".join(each["delta"] for each in events[:-1]) == TEXT
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == TEXT
    assert len(events) >= (2 if model == FILES else 3)
    assert app.calls[-1]["outcome"] == "complete"
    assert app.services.admission.in_flight == 0


@pytest.mark.parametrize("model", [FLASH, AUDIO])
@pytest.mark.parametrize("spec", ["cut-after=2", "error-frame-after=2"])
def test_events_that_break_off_have_no_end(
    app: App, sandbox: Sandbox, model: str, spec: str
) -> None:
    route = "chat" if model == FLASH else "generation"
    sandbox.control(next={"route": route, "spec": spec})
    answer = transcribed(app, model=model, stream="true")
    got = b""
    try:
        with pytest.raises(ConnectionResetError):
            for piece in answer.iter_encoded():
                got += piece
    finally:
        answer.close()

    assert b"transcript.text.done" not in got
    assert b'"error"' in got
    assert app.calls[-1]["outcome"] == "upstream_error"


def test_times_come_from_a_model_for_files(app: App, sandbox: Sandbox) -> None:
    answer = transcribed(
        app,
        wav(2.5),
        response_format="verbose_json",
        language="en",
        **{"timestamp_granularities[]": ["word", "segment"]},
    )

    assert answer.status_code == 200, answer.text
    assert answer.headers["x-qwen-proxy-changed"] == f"model:{FILES}"
    value = answer.json
    assert value is not None
    assert (value["text"], value["language"], value["duration"]) == (TEXT, "en", 2.5)
    assert [(each["start"], each["end"], each["text"]) for each in value["segments"]] == [
        (0, 1.6, "Hello from the sandbox."),
        (1.6, 3.6, "It hears every sound alike."),
    ]
    assert value["words"][1] == {"word": "from", "start": 0.4, "end": 0.8}
    body = asked(sandbox, "file-task")
    assert body["input"]["file_url"].startswith("oss://dashscope-instant/")
    assert body["parameters"] == {"channel_id": [0], "language": "en", "enable_words": True}


@pytest.mark.parametrize(("format", "begins"), [("srt", "1\n00:00:00,000 --> "), ("vtt", "WEBVTT")])
@pytest.mark.parametrize("model", [FLASH, FILES, "fun-asr"])
def test_subtitles(app: App, model: str, format: str, begins: str) -> None:
    answer = transcribed(app, model=model, response_format=format)

    assert answer.status_code == 200, answer.text
    assert answer.text.startswith(begins)
    assert "It hears every sound alike." in answer.text
    assert ("x-qwen-proxy-changed" in answer.headers) is (model == FLASH)


@pytest.mark.parametrize(
    ("model", "sound"),
    [
        (FLASH, wav(301)),
        (FLASH, b"OggS" + bytes(7_600_000)),
        (AUDIO, b"OggS sandbox:too-long"),
        (FLASH, b"OggS sandbox:too-long"),
    ],
)
@pytest.mark.parametrize("stream", ["true", "false"])
def test_long_sound_goes_to_the_model_for_files(
    app: App, sandbox: Sandbox, model: str, sound: bytes, stream: str
) -> None:
    answer = transcribed(app, sound, model=model, stream=stream)

    assert answer.status_code == 200, answer.text
    assert TEXT in answer.text
    assert f"model:{FILES}" in answer.headers["x-qwen-proxy-changed"]
    assert [each.route for each in sandbox.settle()].count("storage") == 1


@pytest.mark.parametrize(
    ("route", "spec", "status", "code"),
    [
        ("uploads", "result-host=https://evil.example", 502, "upstream_result_refused"),
        ("storage", "status=403", 502, "upstream_upload_failed"),
        ("file-task", "task-ends=FAILED", 502, None),
        ("file-task", "partial", 502, "upstream_task_failed"),
        ("file-task", "task-ends=CANCELED", 502, "upstream_task_cancelled"),
        ("file-task", "result-host=https://evil.example", 502, "upstream_result_refused"),
        ("results", "cut-after", 502, None),
        ("file-task", "inspection", 400, None),
    ],
)
def test_failures_of_files_are_told(
    app: App, sandbox: Sandbox, route: str, spec: str, status: int, code: str | None
) -> None:
    sandbox.control(next={"route": route, "spec": spec})
    answer = transcribed(app, response_format="srt")

    assert answer.status_code == status, answer.text
    if code is not None:
        assert answer.json["error"]["code"] == code  # type: ignore[index]  # it is JSON


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ""}, "'model'"),
        ({"response_format": "diarized_json"}, "Supported values"),
        ({"stream": "true", "response_format": "srt"}, "not streamed"),
        ({"stream": "perhaps"}, "Supported values"),
        ({"language": "english"}, "two or three letters"),
        ({"timestamp_granularities[]": "word"}, "verbose_json"),
        ({"timestamp_granularities[]": "line"}, "Supported values"),
        ({"model": "qwen3.7-plus"}, "POST /v1/chat/completions"),
    ],
)
def test_what_cannot_be_done_is_said_clearly(
    app: App, sandbox: Sandbox, fields: dict[str, Any], words: str
) -> None:
    answer = transcribed(app, **fields)

    assert answer.status_code == 400
    assert words in answer.text
    assert not [each for each in sandbox.settle() if each.route in ("chat", "uploads")]


def test_no_sound_no_form_and_no_translation(app: App) -> None:
    text = transcribed(app, b"just text, and no sound")
    no_form = app.client.post("/v1/audio/transcriptions", json={"model": FLASH})
    no_file = app.client.post(
        "/v1/audio/transcriptions", data={"model": FLASH}, content_type="multipart/form-data"
    )
    translation = app.client.post("/v1/audio/translations")

    assert "no format of sound" in text.text
    assert "multipart/form-data" in no_form.text
    assert "'file'" in no_file.text
    assert {each.status_code for each in (text, no_form, no_file, translation)} == {400}


def test_strict_mode_refuses_another_model_and_losses(sandbox: Sandbox) -> None:
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_STRICT="1",
    ) as app:
        moved = transcribed(app, response_format="srt")
        lost = transcribed(app, temperature="0.3")
        prompt = transcribed(app, model=FILES, prompt="names")
        fine = transcribed(app, model=FILES, response_format="srt")
    assert (moved.status_code, lost.status_code, prompt.status_code) == (400, 400, 400)
    assert f"Name `{FILES}`" in moved.text
    assert "temperature" in lost.text
    assert fine.status_code == 200
    assert [each.route for each in sandbox.settle()].count("uploads") == 1


def test_a_transcript_has_a_limit(sandbox: Sandbox) -> None:
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_MAX_ANSWER="1m",
    ) as app:
        sandbox.control(next={"route": "file-task", "spec": "text=" + "x" * 1_100_000})
        answer = transcribed(app, response_format="srt")
    assert (answer.status_code, answer.json["error"]["code"]) == (502, "upstream_too_large")  # type: ignore[index]  # it is JSON
