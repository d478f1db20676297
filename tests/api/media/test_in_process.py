"""Pictures and speech without a server of their own, in front of the sandbox."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, running


def picture(app: App, **members: Any) -> TestResponse:
    body = {"model": "qwen-image-3.0", "prompt": "a cat", **members}
    return app.client.post("/v1/images/generations", json=body)


def speech(app: App, **members: Any) -> TestResponse:
    body = {"model": "qwen3-tts-flash", "input": "hello", "voice": "alloy", **members}
    return app.client.post("/v1/audio/speech", json=body)


# --- pictures ------------------------------------------------------------------------------------


def test_pictures_as_urls_and_as_themselves(app: App) -> None:
    urls = picture(app, n=2).json
    (data,) = picture(app, response_format="b64_json").json["data"]  # type: ignore[index]  # it is JSON

    assert urls is not None
    assert all("url" in each for each in urls["data"])
    assert base64.b64decode(data["b64_json"]).startswith(b"\x89PNG")
    assert [call["outcome"] for call in app.calls] == ["complete", "complete"]


def test_a_form_with_pictures(app: App, sandbox: Sandbox) -> None:
    answer = app.client.post(
        "/v1/images/edits",
        data={
            "model": "qwen-image-edit-plus",
            "prompt": "mix",
            "n": "2",
            "image": [(io.BytesIO(b"\x89PNG\r\n\x1a\n1"), "a.png"), (io.BytesIO(b"GIF89a"), "b")],
        },
    )

    assert answer.status_code == 200, answer.text
    (record,) = [r for r in sandbox.settle() if r.route == "generation"]
    content = json.loads(record.body or b"")["input"]["messages"][0]["content"]
    assert [each["image"].split(";")[0] for each in content[:-1]] == [
        "data:image/png",
        "data:image/gif",
    ]


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"x", "multipart/form-data", "could not be read"),
        (b"x", "multipart/form-data; boundary=b", "could not be read"),
        (
            b"".join(
                b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' for _ in range(201)
            )
            + b"--b--\r\n",
            "multipart/form-data; boundary=b",
            "more than 200 parts",
        ),
    ],
)
def test_forms_that_are_none(app: App, data: bytes, kind: str, words: str) -> None:
    answer = app.client.post("/v1/images/edits", data=data, content_type=kind)

    assert answer.status_code == 400
    assert words in answer.text


def test_tasks_and_their_ends(app: App) -> None:
    fine = picture(app, model="wan2.5-t2i-preview", prompt="[[sandbox: task-looks=1]]", n=2)
    failed = picture(
        app, model="wan2.5-t2i-preview", prompt="[[sandbox: task-looks=1, task-ends=FAILED]]"
    )

    assert len(fine.json["data"]) == 2  # type: ignore[index]  # it is JSON
    assert failed.status_code == 502


def test_pictures_together_have_a_limit(sandbox: Sandbox) -> None:
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_MAX_ANSWER="1m",
    ) as app:
        answer = picture(
            app, n=2, prompt="[[sandbox: result-bytes=600000]]", response_format="b64_json"
        )
    assert (answer.status_code, answer.json["error"]["code"]) == (502, "upstream_too_large")  # type: ignore[index]  # it is JSON


def test_no_picture_at_all_and_variations(app: App) -> None:
    nothing = picture(app, prompt="[[sandbox: partial=1]]")
    variations = app.client.post("/v1/images/variations")
    old = picture(app, model="wan2.5-t2i-preview", prompt="[[sandbox: partial=1, task-looks=1]]")

    assert nothing.status_code == 502
    assert variations.status_code == 400
    assert "this picture failed" in old.text


# --- speech --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({}, b"RIFF"),
        ({"response_format": "pcm"}, b"\x00\x00"),
        ({"model": "qwen-audio-3.1-tts-flash"}, b"\xff\xfb"),
        ({"stream_format": "sse"}, b"data: "),
        ({"input": "A sentence of words. " * 50}, b"RIFF"),
        ({"input": "hello [[sandbox: no-pieces]]"}, b"RIFF"),
    ],
)
def test_sound(app: App, options: dict[str, Any], begins: bytes) -> None:
    answer = speech(app, **options)

    assert answer.status_code == 200, answer.text
    assert answer.data.startswith(begins)
    answer.close()
    assert app.calls[-1]["outcome"] == "complete"


@pytest.mark.parametrize("spec", ["cut-after=1", "error-frame-after=1"])
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_sound_that_breaks_off(app: App, spec: str, stream_format: str) -> None:
    answer = speech(app, input=f"[[sandbox: {spec}]]" + "x" * 200, stream_format=stream_format)
    try:
        with pytest.raises(ConnectionResetError):
            for _ in answer.iter_encoded():
                pass
    finally:
        answer.close()

    assert app.services.admission.in_flight == 0
    assert app.calls[-1]["outcome"] == "upstream_error"


@pytest.mark.parametrize(
    ("spec", "status"),
    [("inspection", 400), ("lost-answer", 502), ("empty-200", 502), ("reset", 502)]
    + [("json-error-200", 502), ("html-200", 502)],
)
def test_failures_before_the_first_sound(app: App, spec: str, status: int) -> None:
    assert speech(app, input=f"[[sandbox: {spec}]]").status_code == status
