"""PDFs in requests of each dialect become their text before a Qwen host sees them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.api.apps import App, in_front_of
from tests.fakes.raw_server import stream, whole
from tests.kit.pdf_files import pdf_of

PDF = base64.b64encode(pdf_of("The report.")).decode()
SCANNED = base64.b64encode(pdf_of("")).decode()
URL = "data:application/pdf;base64,"
TEXT = "[Page 1]\nThe report."
MODELS = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
CHUNK: dict[str, Any] = {
    "id": "c1",
    "model": "m",
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}],
}
STREAMED = stream(b"data: %b\n\n" % json.dumps(CHUNK).encode(), b"data: [DONE]\n\n")
MESSAGE = {"role": "assistant", "content": "hi"}
WHOLE = whole(
    json.dumps({"id": "c1", "choices": [{"message": MESSAGE, "finish_reason": "stop"}]}).encode()
)
QWEN = {"QWEN_PROXY_HOST_FAMILIES": "127.0.0.1=dashscope"}


def messages(pdf: str, *, in_result: bool = False) -> tuple[str, dict[str, Any]]:
    source = {"type": "base64", "media_type": "application/pdf", "data": pdf}
    document = {"type": "document", "source": source, "title": "Tale"}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [document]}]
    if in_result:
        use = {"type": "tool_use", "id": "t1", "name": "Read", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "t1", "content": [document]}
        turns = [
            {"role": "user", "content": "Read it."},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ]
    return "/v1/messages", {"model": "m", "max_tokens": 9, "messages": turns}


def responses(pdf: str, *, in_result: bool = False) -> tuple[str, dict[str, Any]]:
    file = {"type": "input_file", "filename": "tale.pdf", "file_data": URL + pdf}
    items: list[dict[str, Any]] = [{"role": "user", "content": [file]}]
    if in_result:
        items = [
            {"role": "user", "content": "Read it."},
            {"type": "function_call", "call_id": "c", "name": "read", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [file]},
        ]
    return "/v1/responses", {"model": "m", "input": items, "store": False}


def chat(pdf: str) -> tuple[str, dict[str, Any]]:
    file = {"type": "file", "file": {"filename": "tale.pdf", "file_data": URL + pdf}}
    content = [{"type": "text", "text": "Read:"}, file]
    return (
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": content}]},
    )


def sent_by(app: App, server: Any, request: tuple[str, Mapping[str, Any]]) -> tuple[str, str]:
    """What the upstream got, as text, and what was changed."""
    path, body = request
    response = app.client.post(path, data=json.dumps(body).encode())
    assert response.status_code == 200, response.data
    upstream = json.loads(server.requests[-1].partition(b"\r\n\r\n")[2])
    return json.dumps(upstream["messages"]), response.headers.get("x-qwen-proxy-changed", "")


@pytest.mark.parametrize(
    "request_of",
    [
        messages,
        lambda pdf: messages(pdf, in_result=True),
        responses,
        lambda pdf: responses(pdf, in_result=True),
        chat,
    ],
    ids=["messages", "messages-result", "responses", "responses-result", "chat"],
)
@pytest.mark.parametrize("pdf", [PDF, SCANNED], ids=["text", "scanned"])
def test_a_pdf_becomes_its_text(request_of: Any, pdf: str) -> None:
    with in_front_of(MODELS, STREAMED, **QWEN) as (app, server):
        sent, changed = sent_by(app, server, request_of(pdf))

    assert pdf not in sent
    if pdf == PDF:
        assert json.dumps(TEXT)[1:-1] in sent
        assert "as-text" in changed
    else:
        assert "cannot be read" in sent


def test_strict_mode_refuses_what_cannot_be_read_and_takes_what_can() -> None:
    with in_front_of(MODELS, STREAMED, QWEN_PROXY_STRICT="1", **QWEN) as (app, server):
        path, body = messages(SCANNED)
        assert app.client.post(path, data=json.dumps(body).encode()).status_code == 400
        sent_by(app, server, messages(PDF))


def test_another_server_gets_the_file_that_its_chat_client_sent() -> None:
    with in_front_of(MODELS, WHOLE) as (app, server):
        path, body = chat(PDF)
        assert app.client.post(path, data=json.dumps(body).encode()).status_code == 200

    assert PDF.encode() in server.requests[-1]


def test_the_text_of_a_pdf_is_counted() -> None:
    with in_front_of(MODELS) as (app, _):
        counts = []
        for pdf in (PDF, SCANNED):
            _, body = messages(pdf)
            response = app.client.post("/v1/messages/count_tokens", data=json.dumps(body).encode())
            counts.append(json.loads(response.data)["input_tokens"])

    assert all(0 < count < 100 for count in counts)
