"""POST /v1/chat/completions."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi.api import generation, http, lifecycle
from qwen_wsgi.protocol import chat as protocol
from qwen_wsgi.protocol.chat import ChatEncoder

blueprint = Blueprint("chat", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    """Answer a chat request, as a stream or as a whole."""
    live = lifecycle.live()
    chat = protocol.parse_request(lifecycle.read_body(live))
    call = generation.chat_call(live, chat)
    plan = live.services.dispatcher.plan(call)
    if not chat.stream:
        return http.json_bytes(generation.whole(live, call, plan).body)
    encoder = ChatEncoder(
        id="chatcmpl-" + live.call.request_id,
        model=plan.model,
        created=int(live.services.clock.now()),
    )
    return generation.stream(live, call, plan, encoder)
