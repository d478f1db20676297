"""Reads a body of the Responses API that was sent to chat completions.

Cursor does so for models that it takes for OpenAI's newer ones: `input` instead of `messages`, and
flat tools. It reads the answer as chat.
"""

from __future__ import annotations

from dataclasses import replace

from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses.request import parse_request


def is_meant(body: JsonObject) -> bool:
    """Whether a body sent to chat completions is one of the Responses API."""
    return "messages" not in body and body.get("input") is not None


def chat_request(body: JsonObject, *, strict: bool) -> tuple[ChatRequest, tuple[str, ...]]:
    """Translate such a body; also return what was changed, as in `Changes.entries`.

    Raises:
        BadRequest: as for `responses.parse_request`, or it continues a stored response, which
            answers of chat completions never are.
    """
    if body.get("previous_response_id") is not None:
        raise validation.unsupported(
            "previous_response_id",
            "'previous_response_id' needs POST /v1/responses: answers of chat completions are not "
            "stored.",
        )
    request = parse_request(body, strict=strict)
    options = validation.mapping(body, "stream_options") or {}
    customs = request.names.customs()
    chat = replace(request.chat, wants_usage=options.get("include_usage") is True, customs=customs)
    return chat, ("input:as-messages", *request.changed)
