"""POST /v1/chat/completions."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import attachments, generation, server_tools
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.chat import ChatEncoder, cited, parse_request
from qwen_wsgi.protocol.chat.cited import CitingEncoder
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses import in_chat
from qwen_wsgi.protocol.server_tools import chat_tools, foreign, openai_tools
from qwen_wsgi.protocol.server_tools.chat_tools import ChatTools
from qwen_wsgi.protocol.server_tools.chat_turns import ChatTurnsEncoder
from qwen_wsgi.tools.relay import ToolsUnavailable, Turns

blueprint = Blueprint("chat", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    """Answer a chat request, as a stream or as a whole."""
    call = lifecycle.live()
    executor = call.services.executor
    body = call.read_body()
    tools: ChatTools | None = None
    changed: tuple[str, ...] = ()
    if "input" in body and in_chat.is_meant(body):
        body, read = attachments.with_texts(call, body, "input")
        request, changed = in_chat.chat_request(body, strict=call.services.settings.strict)
        changed = (*read, *changed)
    else:
        tools, changed = _tools(call, body)
        request = parse_request(body) if tools is None else tools.chat
        if body.may_hold(attachments.MARK) and (
            texts := attachments.texts_of(call, body, "messages")
        ):
            request = replace(request, documents=texts)
    if tools is not None:
        return _answer_in_turns(call, tools._replace(chat=request), changed)
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


def _tools(call: LiveCall, body: JsonObject) -> tuple[ChatTools | None, tuple[str, ...]]:
    """The request with the operator's tools that it names, or that its key always has, and what was
    changed; None without any.

    Raises:
        ApiError: a tool that it names cannot be used, or not with this key.
    """
    if call.services.tool_runner is None:
        return None, ()
    key = None if call.client is None else call.client.key
    always = key is not None and key.tools_always
    named = openai_tools.is_requested(body)
    if not (named or always):
        return None, ()
    changes = Changes(strict=call.services.settings.strict)
    # What a client did not ask for is no reason to refuse its call.
    if not named and chat_tools.has_several_choices(body):
        changes.note("tools", "not-with-several-choices")
        return None, changes.entries
    try:
        offer = server_tools.offer_of(call, foreign.in_openai_tools(body))
    except ToolsUnavailable:
        if named:
            raise
        changes.note("tools", "not-available")
        return None, changes.entries
    assert offer is not None, "there is a runner"
    return chat_tools.selected(body, offer, changes, always=always), changes.entries


def _answer_in_turns(call: LiveCall, tools: ChatTools, changed: tuple[str, ...]) -> Response:
    """The answer of a model that may call tools of the operator."""
    services, request = call.services, tools.chat
    chat = generation.chat_call(call, request, changed)
    call.record.stream = tools.stream
    plan = services.executor.plan(chat)
    encoder = ChatTurnsEncoder(
        tools,
        id=call.record.completion_id,
        model=request.model or plan.model,
        created=int(services.clock.now()),
    )
    runs, bounds = server_tools.runner_tools(call, None)
    # A turn that is told again would have its tools run again.
    turns = Turns(services.executor, replace(chat, cache=None), plan, encoder, runs, bounds)
    if tools.stream:
        return generation.stream_turns(call, turns)
    generation.complete_turns(call, turns)
    return server_tools.told(call, http.json_value(encoder.completion()))
