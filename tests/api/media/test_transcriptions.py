"""Transcripts without a server of their own, in front of the sandbox."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from urllib3 import encode_multipart_formdata
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.native.asr import TEXT
from tests.api.apps import UPSTREAM_KEY, App, error_of, running
from tests.kit import uploads
from tests.kit.secrets import secret

FLASH = "qwen3-asr-flash"
AUDIO = "qwen-audio-3.1-asr-flash"
FILES = "qwen3-asr-flash-filetrans"
ERROR_FRAME = "error-frame-after=2"


def wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    data = bytes(int(seconds * rate))
    head = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8)
    size = struct.pack("<I", 36 + len(data))
    return b"RIFF" + size + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data


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


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        *((model, spec) for model in (FLASH, AUDIO) for spec in ("cut-after=2", ERROR_FRAME)),
        (FLASH, "no-finish"),  # the last event of the others is like all of them
    ],
)
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
    assert value["usage"] == {"type": "duration", "seconds": 4}
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
        ("results", "not-json", 502, "upstream_bad_answer"),
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
    began = route in ("file-task", "results") and spec != "inspection"
    assert answer.headers.get("x-should-retry") == ("false" if began else None)


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


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (b"", "it is empty"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "no format of sound"),
        (b"RIFF\x00\x00\x00\x00WEBP", "no format of sound"),
    ],
    ids=["empty", "heic", "webp"],
)
def test_a_file_that_is_no_sound(app: App, sound: bytes, words: str) -> None:
    error = error_of(transcribed(app, sound))

    assert (error["param"], error["code"]) == ("file", "invalid_value")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (uploads.field("model", FLASH) + uploads.END, uploads.TYPE, "'file'"),
        (uploads.field("file", "RIFF") + uploads.END, uploads.TYPE, "needs a 'filename'"),
        (uploads.file(wav()), "multipart/form-data", "could not be read"),
        (uploads.file(wav())[:-40], uploads.TYPE, "could not be read"),
        (b"model=qwen3-asr-flash", "application/x-www-form-urlencoded", "multipart/form-data"),
        (wav(), "audio/wav", "multipart/form-data"),
        (b"", "", "multipart/form-data"),
    ],
)
def test_a_form_that_cannot_be_read(app: App, body: bytes, kind: str, words: str) -> None:
    answer = app.client.post("/v1/audio/transcriptions", data=body, content_type=kind)

    assert answer.status_code == 400
    assert words in error_of(answer)["message"]
    assert app.services.admission.bytes_in_flight == 0


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


# --- what is recorded, repeated and moved --------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "sound", "seconds"),
    [
        (FLASH, wav(2.5), 2.5),
        (FLASH, b"OggS and no length", None),
        (AUDIO, wav(2.5), 2.5),
        (FILES, wav(2.5), 4),  # as the upstream counts them
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_seconds_and_tokens_are_recorded(
    app: App, model: str, sound: bytes, seconds: float | None, stream: str
) -> None:
    with transcribed(app, sound, model=model, stream=stream) as answer:
        assert answer.get_data()

    (call,) = app.calls
    assert call.get("seconds") == seconds
    assert (call.get("prompt_tokens") is None) is (model == FILES)


@pytest.mark.parametrize(
    ("route", "model", "stream"),
    [
        ("chat", FLASH, "false"),
        ("chat", FLASH, "true"),
        ("generation", AUDIO, "false"),
        ("generation", AUDIO, "true"),
        ("file-task", FILES, "false"),
    ],
)
def test_a_request_whose_answer_is_lost_is_not_repeated(
    sandbox: Sandbox, route: str, model: str, stream: str
) -> None:
    with two_accounts(sandbox) as (app, other):
        spec = "lost-answer" if route == "file-task" else "drop"
        sandbox.control(next={"route": route, "spec": spec, "count": 9})
        answer = transcribed(app, model=model, stream=stream)
        assert answer.get_data()
        answer.close()
        assert app.services.admission.bytes_in_flight == 0

    assert not other
    assert answer.status_code == 502, answer.text
    assert answer.headers["x-should-retry"] == "false"
    assert "was not asked for again" in error_of(answer)["message"]
    assert [each.route for each in sandbox.settle()].count(route) == 1


@pytest.mark.parametrize(
    ("route", "spec", "model"),
    [
        ("chat", "throttle", FLASH),
        ("generation", "throttle", AUDIO),
        ("uploads", "throttle", FILES),
        ("uploads", "internal", FILES),
        ("storage", "status=503", FILES),
        ("storage", "drop", FILES),
        ("file-task", "throttle", FILES),
    ],
)
def test_another_account_is_asked_where_nothing_was_begun(
    sandbox: Sandbox, route: str, spec: str, model: str
) -> None:
    with two_accounts(sandbox) as (app, other):
        sandbox.control(next={"route": route, "spec": spec, "count": 9})
        answer = transcribed(app, model=model)
        (call,) = app.calls

    assert answer.status_code == 200, answer.text
    assert call["attempts"] == 2
    assert route in other
    assert "file-task" not in [each.route for each in sandbox.settle()] or route == "file-task"


@contextmanager
def two_accounts(sandbox: Sandbox) -> Iterator[tuple[App, list[str]]]:
    """The application with a second account, and, after it, the routes that were called there."""
    called: list[str] = []
    with (
        Sandbox() as other,
        running(
            DASHSCOPE_BASE_URL=sandbox.base_url,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            MODELSTUDIO_BASE_URL=other.base_url,
            MODELSTUDIO_API_KEY=secret("second-of-transcripts"),
            QWEN_PROXY_RETRY_BUDGET="5",
        ) as app,
    ):
        yield app, called
        called += [each.route for each in other.settle() if each.route != "models"]


def test_a_file_is_stored_once_for_an_account_that_is_asked_twice(sandbox: Sandbox) -> None:
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_RETRY_BUDGET="60",
    ) as app:
        sandbox.control(next={"route": "file-task", "spec": "status=500"})
        answer = transcribed(app, model=FILES)

    assert answer.status_code == 200, answer.text
    routes = [each.route for each in sandbox.settle()]
    assert (routes.count("file-task"), routes.count("storage")) == (2, 1)


@pytest.mark.parametrize(("failures", "status"), [(1, 200), (2, 200), (3, 502)])
def test_a_transcript_that_was_made_is_fetched_again(
    app: App, sandbox: Sandbox, failures: int, status: int
) -> None:
    sandbox.control(next={"route": "results", "spec": "cut-after", "count": failures})
    answer = transcribed(app, model=FILES)

    assert answer.status_code == status, answer.text
    routes = [each.route for each in sandbox.settle()]
    assert (routes.count("file-task"), routes.count("results")) == (1, min(failures + 1, 3))
    if status == 502:
        assert answer.headers["x-should-retry"] == "false"


def test_a_storage_that_fails_says_nothing_of_the_account(app: App, sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "storage", "spec": "status=503", "count": 9})
    failed = [transcribed(app, model=FILES) for _ in range(4)]
    sandbox.reset()
    chat = app.chat({"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "hi"}]})

    assert {error_of(each)["code"] for each in failed} == {"upstream_upload_failed"}
    assert chat.status_code == 200, chat.text


def test_without_an_account_for_it_the_answer_is_501(sandbox: Sandbox) -> None:
    with running(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_HOST_FAMILIES="127.0.0.1=coding-plan",
    ) as app:
        answer = transcribed(app)

    assert (answer.status_code, error_of(answer)["code"]) == (501, "not_available_here")
    assert not [each for each in sandbox.settle() if each.route != "models"]


def test_the_list_of_models_tells_who_transcribes_and_chat_names_the_endpoint(app: App) -> None:
    listed = app.get("/v1/models").json
    assert listed is not None
    found = {each["id"]: each["capabilities"] for each in listed["data"]}
    chat = app.chat({"model": FLASH, "messages": [{"role": "user", "content": "hi"}]})

    assert {name: found[name] for name in (FLASH, AUDIO, FILES, "fun-asr")} == dict.fromkeys(
        (FLASH, AUDIO, FILES, "fun-asr"), ["transcription"]
    )
    assert chat.status_code == 400
    assert "POST /v1/audio/transcriptions" in error_of(chat)["message"]


def test_no_account_with_the_model_for_files_is_said_with_the_reason(sandbox: Sandbox) -> None:
    sandbox.control(faults={"uploads": "model-not-found"})
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
    ) as app:
        answer = transcribed(app, response_format="srt")

    assert answer.status_code == 404, answer.text
    error = error_of(answer)
    assert error["code"] == "model_not_found"
    assert error["message"].startswith("Only a model for files tells times")
    assert f"So `{FILES}` was asked." in error["message"]
