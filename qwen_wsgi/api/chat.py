"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request

from qwen_wsgi.api import calls, replies
from qwen_wsgi.protocol import chat as protocol
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.upstream.attempts import Course
from qwen_wsgi.upstream.conversation import conversation_of
from qwen_wsgi.upstream.dispatch import ChatCall
from qwen_wsgi.upstream.relay import Relay

blueprint = Blueprint("chat", __name__)
blueprint.before_request(calls.check_caller)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    """Answer a chat request, as a stream or as a whole."""
    services = calls.services()
    live = calls.live()
    chat = protocol.parse_request(calls.read_body())
    live.call.stream = chat.stream
    live.call.model = chat.model
    call = chat_call(chat)
    plan = services.dispatcher.plan(call)
    if not chat.stream:
        answer = services.dispatcher.complete(call, plan)
        live.call.usage = answer.usage
        live.call.upstream_request_id = answer.upstream_request_id
        return replies.json_bytes(answer.body)
    relay = live.relay = Relay(
        lambda: services.dispatcher.stream(call, plan),
        settings=services.settings,
        clock=services.clock,
        call_id="chatcmpl-" + live.call.request_id,
        model=plan.model,
    )
    relay.wait_first()
    return replies.event_stream(relay)


def chat_call(chat: ChatRequest) -> ChatCall:
    """What the dispatcher needs of the current request beside its body."""
    live = calls.live()
    environ = request.environ
    live.course = Course(client=live.call.client)
    return ChatCall(
        chat,
        forwarded_headers(environ),
        pinned=environ.get("HTTP_X_QWEN_ACCOUNT", ""),
        conversation=lambda: conversation_of(chat.body, environ, client=live.call.client),
        course=live.course,
    )


def forwarded_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The client's headers that the upstream gets: who it is, and DashScope's own switches.

    The User-Agent goes through as it is, because plans decide by it who may call; it is never
    made up.
    """
    headers = {
        "X-DashScope-" + name[17:].replace("_", "-").title(): value
        for name, value in environ.items()
        if name.startswith("HTTP_X_DASHSCOPE_")
    }
    if agent := environ.get("HTTP_USER_AGENT"):
        headers["User-Agent"] = agent
    return headers
