"""Each call is in the ledger once, before the last bytes of its answer are sent."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import App, running
from tests.kit.call_rows import rows

KEY = "sk-one-of-the-accounts"

#: A second of silence: 8000 samples of a byte.
WAV = (
    b"RIFF"
    + struct.pack("<I", 36 + 8000)
    + b"WAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    + b"data"
    + struct.pack("<I", 8000)
    + bytes(8000)
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def app(sandbox: Sandbox, tmp_path: Path) -> Iterator[App]:
    with running(
        state_dir=tmp_path, DASHSCOPE_BASE_URL=sandbox.base_url, DASHSCOPE_API_KEY=KEY
    ) as made:
        yield made


MESSAGES = [{"role": "user", "content": "hello [[sandbox: chunks=4, interval=0.02, cached=5]]"}]
MODEL = "qwen3.8-max"
STREAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": MODEL, "messages": MESSAGES}),
    "messages": ("/v1/messages", {"model": MODEL, "messages": MESSAGES, "max_tokens": 99}),
    "responses": ("/v1/responses", {"model": MODEL, "input": MESSAGES[0]["content"]}),
    "completions": ("/v1/completions", {"model": MODEL, "prompt": MESSAGES[0]["content"]}),
}


def carried(answer: Any, directory: Path) -> tuple[bytes, list[int]]:
    """The body, and how many rows there were after each of its pieces had come."""
    body, counts = b"", []
    for piece in answer.response:
        body += piece
        counts.append(len(rows(directory)))
    answer.close()
    return body, counts


@pytest.mark.parametrize("dialect", STREAMED)
def test_of_a_stream_before_its_last_event(app: App, tmp_path: Path, dialect: str) -> None:
    path, body = STREAMED[dialect]
    answer = app.client.post(path, json={**body, "stream": True}, buffered=False)
    said, counts = carried(answer, tmp_path)

    assert said
    assert counts[0] == 0
    assert counts[-1] == 1
    (row,) = rows(tmp_path)
    assert (row.outcome, row.status, row.stream, row.endpoint) == ("complete", 200, 1, path)
    assert (row.cached_tokens, row.currency, row.attempts) == (5, "USD", 1)
    assert row.input_tokens and row.output_tokens and row.money_micro
    assert [(call["outcome"], call["prompt_tokens"]) for call in app.calls] == [
        ("complete", row.input_tokens)
    ]


@pytest.mark.parametrize("dialect", STREAMED)
def test_of_a_whole_answer_before_its_body(app: App, tmp_path: Path, dialect: str) -> None:
    path, body = STREAMED[dialect]
    answer = app.client.post(path, json=body, buffered=False)
    _, counts = carried(answer, tmp_path)

    assert counts == [1]
    (row,) = rows(tmp_path)
    assert (row.outcome, row.status, row.stream, row.cached_tokens) == ("complete", 200, 0, 5)


@pytest.mark.parametrize("dialect", STREAMED)
def test_of_a_stream_that_fails_before_its_error_event(
    app: App, tmp_path: Path, dialect: str
) -> None:
    path, body = STREAMED[dialect]
    broken = json.loads(json.dumps(body).replace("cached=5", "cut-after=3"))
    answer = app.client.post(path, json={**broken, "stream": True}, buffered=False)
    counts = []
    try:
        for _ in answer.response:
            counts.append(len(rows(tmp_path)))
    except (
        Exception
    ) as error:  # the connection is broken after the event, where a dialect has it so
        assert type(error).__name__ == "StreamBroken"
    answer.close()

    assert (counts[0], counts[-1]) == (0, 1)
    (row,) = rows(tmp_path)
    assert (row.outcome, row.error, row.unknown_usage) == ("upstream_error", "upstream_broken", 1)
    assert (row.input_tokens, row.money_micro) == (None, None)


@pytest.mark.parametrize("dialect", STREAMED)
def test_a_client_that_leaves(app: App, tmp_path: Path, dialect: str) -> None:
    path, body = STREAMED[dialect]
    answer = app.client.post(path, json={**body, "stream": True}, buffered=False)
    next(iter(answer.response))
    answer.close()

    (row,) = rows(tmp_path)
    assert (row.outcome, row.unknown_usage, row.input_tokens) == ("client_gone", 1, None)


@pytest.mark.parametrize(
    ("body", "status", "outcome", "error"),
    [
        ({"messages": 5}, 400, "refused", "invalid_type"),
        (
            {
                "model": MODEL,
                "messages": [{"role": "user", "content": "[[sandbox: error=limit_requests]]"}],
            },
            429,
            "upstream_error",
            "rate_limit_exceeded",
        ),
    ],
)
def test_a_call_that_fails(
    app: App, tmp_path: Path, body: Any, status: int, outcome: str, error: str
) -> None:
    answer = app.chat(body)

    assert answer.status_code == status
    (row,) = rows(tmp_path)
    assert (row.status, row.outcome) == (status, outcome)
    assert row.error == json.loads(answer.data)["error"]["code"] or error
    assert row.unknown_usage == 0


@pytest.mark.parametrize("dialect", STREAMED)
def test_a_stream_that_fails_before_its_first_event(app: App, tmp_path: Path, dialect: str) -> None:
    path, body = STREAMED[dialect]
    refused = json.loads(json.dumps(body).replace("cached=5", "error=limit_requests"))
    answer = app.client.post(path, json={**refused, "stream": True}, buffered=False)
    _, counts = carried(answer, tmp_path)

    assert (answer.status_code, counts) == (429, [1])
    (row,) = rows(tmp_path)
    assert (row.outcome, row.status, row.unknown_usage) == ("upstream_error", 429, 0)


def test_what_is_not_recorded(app: App, tmp_path: Path) -> None:
    for path in ("/", "/health", "/health/live", "/status", "/v1/usage"):
        assert app.get(path, headers={"Host": "127.0.0.1"}).status_code in (200, 503)
    assert rows(tmp_path) == []
    app.get("/v1/models")
    app.get("/v1/files/file-1")
    app.get("/nowhere")

    assert [(row.endpoint, row.outcome) for row in rows(tmp_path)] == [
        ("/v1/models", "complete"),
        ("/v1/files/{id}", "refused"),
        ("unknown", "refused"),
    ]


def test_a_refused_caller_is_recorded_without_a_name(sandbox: Sandbox, tmp_path: Path) -> None:
    with running(state_dir=tmp_path, QWEN_PROXY_API_KEYS="sk-the-only-one-there-is") as app:
        app.chat()
        (row,) = rows(tmp_path)

    assert (row.client, row.client_id, row.outcome, row.status) == ("-", "", "refused", 401)


# --- answers of other kinds ----------------------------------------------------------------------


def test_embeddings(app: App, tmp_path: Path) -> None:
    answer = app.client.post(
        "/v1/embeddings", json={"model": "text-embedding-v4", "input": ["a", "b"]}
    )
    assert answer.status_code == 200

    (row,) = rows(tmp_path)
    assert (row.units, row.currency, row.unknown_usage) == ('{"embeddings":2}', "CNY", 0)
    assert row.input_tokens


@pytest.mark.parametrize("stream", [None, "sse"])
def test_speech(app: App, tmp_path: Path, stream: str | None) -> None:
    body = {"model": "qwen3-tts-flash", "voice": "alloy", "input": "hello"}
    if stream:
        body["stream_format"] = stream
    answer = app.client.post("/v1/audio/speech", json=body, buffered=False)
    said, counts = carried(answer, tmp_path)

    assert said
    assert len(counts) > 1
    # A body without a length ends with an empty chunk, which comes after the last sound.
    assert counts[:-1] == [0] * (len(counts) - 1)
    assert counts[-1] == (1 if stream else 0)
    (row,) = rows(tmp_path)
    assert (row.outcome, row.units) == ("complete", '{"characters":5}')


def test_the_events_of_a_transcript(app: App, tmp_path: Path) -> None:
    form = {
        "model": "qwen3-asr-flash",
        "stream": "true",
        "file": (io.BytesIO(WAV), "a.wav"),
    }
    answer = app.client.post("/v1/audio/transcriptions", data=form, buffered=False)
    said, counts = carried(answer, tmp_path)

    assert b"transcript.text.done" in said
    assert (counts[0], counts[-1]) == (0, 1)
    (row,) = rows(tmp_path)
    assert row.outcome == "complete"
    assert '"seconds"' in (row.units or "")


def test_the_content_of_a_file(app: App, tmp_path: Path) -> None:
    large = b'{"custom_id":"1"}\n' * 20_000
    form = {"purpose": "batch", "file": (io.BytesIO(large), "a.jsonl")}
    made = json.loads(app.client.post("/v1/files", data=form).data)
    before = len(rows(tmp_path))

    answer = app.client.get(f"/v1/files/{made['id']}/content", buffered=False)
    body, counts = carried(answer, tmp_path)

    assert body == large
    assert (len(counts) > 1, counts[0], counts[-1]) == (True, before, before + 1)
    assert rows(tmp_path)[-1].endpoint == "/v1/files/{id}/content"
    assert not any(row.unknown_usage for row in rows(tmp_path))


def test_late_json(app: App, tmp_path: Path) -> None:
    body = {"model": "wan2.7-t2v", "prompt": "a cat"}
    answer = app.client.post("/v1/videos/generations", json=body, buffered=False)
    said, counts = carried(answer, tmp_path)

    assert json.loads(said)["status"] == "completed"
    assert counts == [1]
    (row,) = rows(tmp_path)
    assert (row.endpoint, row.outcome, row.status) == ("/v1/videos/generations", "complete", 200)
    assert '"seconds"' in (row.units or "")


def test_what_the_upstream_does_not_count_is_unknown(app: App, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "[[sandbox: no-usage]]"}]
    assert app.chat({"model": MODEL, "messages": messages}).status_code == 200

    (row,) = rows(tmp_path)
    assert (row.outcome, row.input_tokens, row.unknown_usage) == ("complete", None, 1)
