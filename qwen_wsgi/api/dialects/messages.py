"""POST /v1/messages, /v1/messages/count_tokens and …/cache_touch: Anthropic's API."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import attachments, counting, generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError
from qwen_wsgi.greenlets import apart
from qwen_wsgi.protocol import messages
from qwen_wsgi.protocol.messages import MessagesRequest, errors, search, validation
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.routing.affinity import conversation_key
from qwen_wsgi.upstream.routing.router import Plan

blueprint = Blueprint("messages", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Behind the error for a Claude model that nobody serves.
_HINT: Final = (
    " To have names of Claude models answered by a Qwen model, the operator of this proxy sets "
    "QWEN_PROXY_MODEL_ALIASES=claude-*=qwen3.8-max (or another model that it lists)."
)


@blueprint.post("/v1/messages")
def create() -> Response:
    """Answer a request, as a stream or as a whole."""
    call = lifecycle.live()
    services, record = call.services, call.record
    body, read = attachments.with_texts(call, call.read_body(), "messages")
    parse = partial(messages.parse_request, body, strict=services.settings.strict)
    request = apart(parse) if body.is_long else parse()
    counting.watch(call, request.chat.body, request.chat.model)
    chat = generation.chat_call(call, request.chat, (*read, *request.changed))
    if body.get("metadata") is not None:
        # `metadata.user_id` names account, machine and session: read here, and not sent upstream.
        chat = replace(
            chat,
            conversation=lambda: conversation_key(body, call.environ, client=record.client_id),
        )
    plan = services.executor.plan(chat)
    try:
        return _answer(call, request, chat, plan)
    except ApiError as error:
        if error.code != search.UNAVAILABLE or not request.forces_search:
            raise
        record.fail(error)
        return _no_search(request, plan, _id(call))


def _id(call: LiveCall) -> str:
    return "msg_" + call.record.request_id.removeprefix("req_")


def _no_search(request: MessagesRequest, plan: Plan, id: str) -> Response:
    """The message for a forced search that the model does not have."""
    model = request.chat.model or plan.model
    if request.chat.stream:
        return http.event_stream([search.events(id=id, model=model)])
    return http.json_value(search.whole(id=id, model=model))


def _answer(call: LiveCall, request: MessagesRequest, chat: ChatCall, plan: Plan) -> Response:
    services, record, id = call.services, call.record, _id(call)
    if not request.chat.stream:
        value = services.executor.complete(chat, plan).value  # its bytes are not needed any more
        return http.json_value(messages.whole(request, value, id=id))
    encoder = messages.MessagesEncoder(
        id=id,
        model=request.chat.model or plan.model,
        stops=request.stops,
        request_id=record.request_id,
        searches=request.searches,
    )
    return generation.stream(call, chat, plan, encoder)


@blueprint.post("/v1/messages/count_tokens")
def count_tokens() -> Response:
    """Count the tokens of a prompt without a call of a model (`counting`)."""
    call = lifecycle.live()
    body, _ = attachments.with_texts(call, call.read_body(), "messages")
    model = validation.want(body, "model", str) or ""
    parse = partial(messages.parse_prompt, body)
    count, how = counting.count(call, apart(parse) if body.is_long else parse(), model)
    return counting.answer({"input_tokens": count}, how)


@blueprint.post("/v1/messages/cache_touch")
def touch_cache() -> Response:
    """Say that no cache was kept alive, with status 200, so that Claude Code does not try again.

    Its beta `cache-keepalive-2026-09-03` calls this between two turns. At Qwen's hosts only a call
    of a model, which is billed, keeps a cache alive. Anthropic documents no form of the answer.
    """
    lifecycle.live().read_body()
    return http.json_value({"type": "cache_touch", "touched": False})


def error(call: LiveCall, failure: ApiError) -> Response:
    """The response for a failure, in Anthropic's form."""
    record = call.record
    if failure.code == "model_not_found" and record.model.startswith("claude"):
        failure.message += _HINT
    return http.error(failure, errors.body(failure, request_id=record.request_id))
