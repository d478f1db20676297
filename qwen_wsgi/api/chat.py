"""POST /v1/chat/completions."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi.api import generation, http, lifecycle
from qwen_wsgi.protocol.chat import ChatEncoder, parse_request

blueprint = Blueprint("chat", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    """Answer a chat request, as a stream or as a whole."""
    call = lifecycle.live()
    executor = call.services.executor
    request = parse_request(call.read_body())
    chat = generation.chat_call(call, request)
    plan = executor.plan(chat)
    if not request.stream:
        return http.json_bytes(executor.complete(chat, plan).body)
    encoder = ChatEncoder(
        id=call.record.completion_id,
        model=plan.model,
        created=int(call.services.clock.now()),
    )
    return generation.stream(call, chat, plan, encoder)
