"""POST /v1/chat/completions."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import attachments, generation
from qwen_wsgi.protocol.chat import ChatEncoder, cited, parse_request
from qwen_wsgi.protocol.chat.cited import CitingEncoder
from qwen_wsgi.protocol.responses import in_chat

blueprint = Blueprint("chat", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    """Answer a chat request, as a stream or as a whole."""
    call = lifecycle.live()
    executor = call.services.executor
    body = call.read_body()
    changed: tuple[str, ...] = ()
    if "input" in body and in_chat.is_meant(body):
        body, read = attachments.with_texts(call, body, "input")
        request, changed = in_chat.chat_request(body, strict=call.services.settings.strict)
        changed = (*read, *changed)
    else:
        request = parse_request(body)
        if attachments.MARK in body.source:
            texts = attachments.texts_of(call, body, "messages")
            request = replace(request, documents=texts)
    chat = generation.chat_call(call, request, changed)
    plan = executor.plan(chat)
    if not request.stream:
        answer = executor.complete(chat, plan)
        if request.searches and (value := cited.completion(answer.value)) is not answer.value:
            return http.json_value(value)
        return http.json_bytes(answer.body)
    encoder = (CitingEncoder if request.searches else ChatEncoder)(
        id=call.record.completion_id,
        model=plan.model,
        created=int(call.services.clock.now()),
    )
    return generation.stream(call, chat, plan, encoder)
