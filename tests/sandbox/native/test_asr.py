"""The sandbox's speech recognition and its temporary storage, as the vendor's pages have them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.sandbox.native.asr import TEXT
from tests.sandbox.support import KEY, Answer, call

GENERATION = "/api/v1/services/aigc/multimodal-generation/generation"
FILES = "/api/v1/services/audio/asr/transcription"
AUDIO = "qwen-audio-3.1-asr-flash"
FILE_MODEL = "qwen3-asr-flash-filetrans"
KEYED = {"Authorization": f"Bearer {KEY}"}
SOUND = "data:audio/ogg;base64," + base64.b64encode(b"OggS").decode()
LONG = "data:audio/ogg;base64," + base64.b64encode(b"OggS sandbox:too-long").decode()


def heard(sandbox: Sandbox, data: str = SOUND, hint: str = "", **parameters: Any) -> Answer:
    part = {"type": "input_audio", "input_audio": {"data": data}}
    messages = [{"role": "user", "content": [part]}]
    if hint:
        messages.insert(0, {"role": "user", "content": [{"type": "input_text", "text": hint}]})
    body = {"model": AUDIO, "input": {"messages": messages}, "parameters": parameters}
    return call(sandbox, "POST", GENERATION, body, headers=KEYED)


def begun(sandbox: Sandbox, url: str, model: str = FILE_MODEL, **headers: str) -> Answer:
    given: dict[str, Any] = {"file_url": url} if model == FILE_MODEL else {"file_urls": [url]}
    sent = {**KEYED, "X-DashScope-Async": "enable", **headers}
    return call(sandbox, "POST", FILES, {"model": model, "input": given}, headers=sent)


def ended(sandbox: Sandbox, answer: Answer) -> dict[str, Any]:
    id = answer.json()["output"]["task_id"]
    output: dict[str, Any] = {}
    for _ in range(3):
        output = call(sandbox, "GET", f"/api/v1/tasks/{id}", headers=KEYED).json()["output"]
    return output


def test_a_sound_at_once(sandbox: Sandbox) -> None:
    assert heard(sandbox, format="ogg").json()["output"] == {"text": TEXT}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"data": LONG, "format": "ogg"}, "AUDIO_DURATION_TOO_LONG"),
        ({"data": "data:text/plain;base64,YQ==", "format": "ogg"}, "InvalidParameter"),
        ({"hint": "x" * 401, "format": "ogg"}, "InvalidParameter"),
        ({}, "InvalidParameter"),
    ],
)
def test_refusals(sandbox: Sandbox, options: dict[str, Any], code: str) -> None:
    answer = heard(sandbox, **options)

    assert (answer.status, answer.json()["code"]) == (400, code)


def test_a_chat_model_takes_one_sound(sandbox: Sandbox) -> None:
    part = {"type": "input_audio", "input_audio": {"data": SOUND}}

    def asked(*parts: Any) -> Answer:
        body = {"model": "qwen3-asr-flash", "messages": [{"role": "user", "content": list(parts)}]}
        return call(sandbox, "POST", "/compatible-mode/v1/chat/completions", body, headers=KEYED)

    assert asked(part).json()["choices"][0]["message"]["content"] == TEXT
    assert asked(part, part).status == 400
    assert asked({"type": "text", "text": "hello"}).status == 400


@pytest.mark.parametrize("model", [FILE_MODEL, "fun-asr"])
def test_a_file_at_a_url(sandbox: Sandbox, model: str) -> None:
    output = ended(sandbox, begun(sandbox, "https://a.example/a.wav", model))

    result = output["result"] if model == FILE_MODEL else output["results"][0]
    assert output["task_status"] == "SUCCEEDED"
    assert result["transcription_url"].startswith(sandbox.origin)


def test_files_that_are_not_there(sandbox: Sandbox) -> None:
    resolved = {"X-DashScope-OssResourceResolve": "enable"}
    output = ended(sandbox, begun(sandbox, "oss://nowhere/a.wav", **resolved))

    assert output["result"]["code"] == "FILE_403_FORBIDDEN"
    assert begun(sandbox, "oss://nowhere/a.wav").status == 400
    assert begun(sandbox, "https://a.example/a.wav", "qwen3-asr-flash").status == 404


def test_storage_wants_its_policy(sandbox: Sandbox) -> None:
    path = f"/api/v1/uploads?action=getPolicy&model={FILE_MODEL}"
    policy = call(sandbox, "GET", path, headers=KEYED).json()["data"]

    assert policy["upload_host"] == f"{sandbox.origin}/_storage"
    assert call(sandbox, "GET", "/api/v1/uploads", headers=KEYED).status == 400
    assert call(sandbox, "GET", path).status == 401
    assert call(sandbox, "POST", "/_storage", {}).status == 403
