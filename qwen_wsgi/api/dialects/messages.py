"""POST /v1/messages, /v1/messages/count_tokens and …/cache_touch: Anthropic's API."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import attachments, counting, generation, server_tools
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError
from qwen_wsgi.greenlets import apart
from qwen_wsgi.protocol import messages
from qwen_wsgi.protocol.messages import MessagesRequest, errors, search, validation
from qwen_wsgi.protocol.messages.server_tools import is_requested
from qwen_wsgi.protocol.server_tools import foreign
from qwen_wsgi.tools.relay import Turns
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.routing.affinity import conversation_key
from qwen_wsgi.upstream.routing.router import Plan

blueprint = Blueprint("messages", __name__)
blueprint.before_request(lifecycle.check_caller)

#: How long a container stays that nobody uses.
_CONTAINER_S: Final = 20 * 60

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
    offer = None
    if services.tool_runner is not None and is_requested(body):
        offer = server_tools.offer_of(call, foreign.in_mcp_servers(body))
    parse = partial(messages.parse_request, body, strict=services.settings.strict, offer=offer)
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
    if request.stream:
        return http.event_stream([search.events(id=id, model=model)])
    return http.json_value(search.whole(id=id, model=model))


def _answer(call: LiveCall, request: MessagesRequest, chat: ChatCall, plan: Plan) -> Response:
    services, record, id = call.services, call.record, _id(call)
    if request.own is not None:
        return _answer_in_turns(call, request, chat, plan)
    if not request.stream:
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


def _answer_in_turns(
    call: LiveCall, request: MessagesRequest, chat: ChatCall, plan: Plan
) -> Response:
    """The answer of a model that may call tools of the operator."""
    record = call.record
    record.stream = request.stream
    expires = datetime.fromtimestamp(call.services.clock.now() + _CONTAINER_S, UTC)
    encoder = messages.TurnsEncoder(
        request,
        id=_id(call),
        model=request.chat.model or plan.model,
        expires=expires.isoformat(timespec="seconds").replace("+00:00", "Z"),
        request_id=record.request_id,
    )
    tools, bounds = server_tools.runner_tools(call, None)
    # A turn that is told again would have its tools run again.
    chat = replace(chat, cache=None)
    turns = Turns(call.services.executor, chat, plan, encoder, tools, bounds)
    if request.stream:
        return generation.stream_turns(call, turns)
    generation.complete_turns(call, turns)
    return server_tools.told(call, http.json_value(encoder.message()))


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
