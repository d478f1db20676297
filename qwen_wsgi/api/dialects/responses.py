"""OpenAI's Responses API: POST /v1/responses, and what can be done with a stored response."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import attachments, background, counting, generation, server_tools
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.paging import limit_of, oldest_first
from qwen_wsgi.errors import ApiError, BadRequest, NotFound, UpstreamError
from qwen_wsgi.greenlets import apart
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol import responses as protocol
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses import ResponseEncoder, ResponsesRequest, compaction
from qwen_wsgi.protocol.responses.server_tools import image_tool
from qwen_wsgi.protocol.responses.server_tools.image_tool import ImageOffer
from qwen_wsgi.protocol.server_tools import foreign, openai_tools
from qwen_wsgi.protocol.server_tools.offer import Offer
from qwen_wsgi.state.database.background import Job
from qwen_wsgi.state.database.responses import ResponseStore, Stored
from qwen_wsgi.tools.pictures import PictureTool, offer_of
from qwen_wsgi.tools.relay import Bounds, Turns, TurnTool
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.routing.router import Plan

blueprint = Blueprint("responses", __name__)
blueprint.before_request(lifecycle.check_caller)

_PREFIX: Final = "resp_"
_ID_BYTES: Final = 24

#: Items of a continued conversation that take long to translate: twenty milliseconds.
_LONG_HISTORY: Final = 1000


@blueprint.post("/v1/responses")
def create() -> Response:
    """Answer a request, as a stream of events or as a whole, and store it if the client wants."""
    call = lifecycle.live()
    services = call.services
    id, body = new_id(), call.read_body()
    request, chat = chat_of(call, body, id)
    plan = services.executor.plan(chat)
    created, model = int(services.clock.now()), request.model or plan.model
    if request.background is not None:
        object = protocol.background.queued(request.echo, id=id, created=created, model=model)
        return http.json_value(background.begin(call, request, chat, plan, object, body.source))
    keep = _Storing(services.responses, call.owner, request).put
    if request.stream or request.has_turns:
        encoder = ResponseEncoder(request, id=id, created=created, model=model, keep=keep)
        if request.stream:
            return stream(call, request, chat, plan, encoder)
        whole = _complete_turns(call, request, chat, plan, encoder)
        return server_tools.told(call, http.json_value(whole))
    value = services.executor.complete(chat, plan).value  # its bytes are not needed any more
    return http.json_value(
        protocol.whole(request, value, id=id, created=created, model=model, keep=keep)
    )


@blueprint.post("/v1/responses/input_tokens")
def count_tokens() -> Response:
    """How many tokens a request would be: `{"object": "response.input_tokens", "input_tokens"}`.

    Without a call of a model (`counting`).
    """
    call = lifecycle.live()
    body, _ = attachments.with_texts(call, call.read_body(), "input")
    counted = _request(call, body, "")
    count, how = counting.count(call, counted.chat.body, counted.model)
    return counting.answer({"object": "response.input_tokens", "input_tokens": count}, how)


@blueprint.post("/v1/responses/compact")
def compact() -> Response:
    """Shorten a conversation to the user's messages and a summary by the model; not stored.

    `{"id", "object": "response.compaction", "created_at", "output", "usage"}`.
    """
    call = lifecycle.live()
    services = call.services
    id = new_id()
    body = call.read_body()
    if body.get("background"):
        raise protocol.background.not_here()
    body, read = attachments.with_texts(call, compaction.triggered(body), "input")
    request = _request(call, body, id)
    chat = generation.chat_call(call, request.chat, (*read, *request.changed))
    plan = services.executor.plan(chat)
    answer = services.executor.complete(chat, plan)
    created, model = int(services.clock.now()), request.model or plan.model
    response = protocol.whole(request, answer.value, id=id, created=created, model=model)
    if not compaction.has_summary(response):
        raise UpstreamError(f"The model '{model}' wrote no summary of the conversation.")
    before = request.previous_response_id
    history = services.responses.history(call.owner, before) if before else []
    return http.json_value(compaction.compaction(response, [*history, *request.input_items]))


@blueprint.get("/v1/responses/<id>")
def retrieve(id: str) -> Response:
    """A stored response."""
    if request.args.get("stream", "") == "true":
        raise BadRequest(
            "A response cannot be streamed once more here, also none in the background: leave out "
            "'stream', and ask again while its status is queued or in_progress.",
            param="stream",
            code="unsupported_parameter",
        )
    return http.json_value(_stored(id).response)


@blueprint.delete("/v1/responses/<id>")
def delete(id: str) -> Response:
    """Forget a stored response: `{"id", "object": "response", "deleted": true}`. One in the
    background is broken off."""
    call = lifecycle.live()
    found = call.services.background.delete(call.owner, id)
    try:
        found = call.services.responses.delete(call.owner, id) or found
    except ApiError:
        if not found:  # else it is not among the stored ones
            raise
    if not found:
        raise _not_found(id)
    return http.json_value({"id": id, "object": "response", "deleted": True})


@blueprint.post("/v1/responses/<id>/cancel")
def cancel(id: str) -> Response:
    """End a response in the background; one that has ended stays as it is."""
    call = lifecycle.live()
    response = call.services.background.cancel(call.owner, id) or _stored(id).response
    if not response.get("background"):
        raise BadRequest("Cannot cancel a synchronous response.", code="unsupported_operation")
    return http.json_value(response)


@blueprint.get("/v1/responses/<id>/input_items")
def input_items(id: str) -> Response:
    """What the client sent with a stored response: `{"object": "list", "data": [item],
    "first_id", "last_id", "has_more"}`, the latest first unless `order=asc`."""
    items = _stored(id).input_items
    if not oldest_first(request.args):
        items = items[::-1]
    ids = [str(item.get("id")) for item in items]
    if (after := request.args.get("after")) is not None:
        if after not in ids:
            raise BadRequest(f"No item has the id '{after[:64]}'.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[: limit_of(request.args)]
    shown = [str(item.get("id")) for item in page] or [""]
    return http.json_value(
        {
            "object": "list",
            "data": page,
            "first_id": shown[0],
            "last_id": shown[-1],
            "has_more": len(page) < len(items),
        }
    )


def new_id() -> str:
    """A new id of a response."""
    return _PREFIX + os.urandom(_ID_BYTES).hex()


def stream(
    call: LiveCall, request: ResponsesRequest, chat: ChatCall, plan: Plan, encoder: ResponseEncoder
) -> Response:
    """Answer with a stream, of several turns if the model has a tool that the proxy runs.

    Raises:
        ApiError: no account answered, and nothing was sent to the client yet.
    """
    if not request.has_turns:
        return generation.stream(call, chat, plan, encoder)
    return generation.stream_turns(call, _turns(call, request, chat, plan, encoder))


def _complete_turns(
    call: LiveCall, request: ResponsesRequest, chat: ChatCall, plan: Plan, encoder: ResponseEncoder
) -> dict[str, Any]:
    """The whole response, of several turns."""
    generation.complete_turns(call, _turns(call, request, chat, plan, encoder))
    assert encoder.response is not None, "it has ended"
    return encoder.response


def _turns(
    call: LiveCall, request: ResponsesRequest, chat: ChatCall, plan: Plan, encoder: ResponseEncoder
) -> Turns:
    services = call.services
    tools: dict[str, TurnTool] = {}
    bounds: Bounds | None = None
    if request.image is not None:
        tools[image_tool.NAME] = PictureTool(
            services.pictures,
            services.router,
            request.image,
            headers=chat.headers,
            permit=chat.permit,
            max_bytes=services.settings.max_answer_bytes,
            most=request.max_tool_calls,
        )
    if request.runs_offered:
        offered, bounds = server_tools.runner_tools(call, request.max_tool_calls)
        tools |= offered
    # A turn that is told again would have its tools run again: pictures are paid, files written.
    chat = replace(chat, cache=None)
    return Turns(services.executor, chat, plan, encoder, tools, bounds)


def chat_of(
    call: LiveCall,
    body: JsonObject,
    id: str,
    history: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[ResponsesRequest, ChatCall]:
    """A request for the response `id`, and the chat call that it becomes; `history` as below."""
    body, read = attachments.with_texts(call, body, "input")
    request = _request(call, body, id, history)
    counting.watch(call, request.chat.body, request.model)
    chat = generation.chat_call(call, request.chat, (*read, *request.changed))
    call.record.stream = request.stream
    return request, chat


def make(call: LiveCall, job: Job) -> dict[str, Any]:
    """Make the whole response of a request in the background, as `create` would have.

    Raises:
        ApiError: it failed.
    """
    executor, object = call.services.executor, job.stored.response
    created, model = object["created_at"], object["model"]
    request, chat = chat_of(call, JsonObject(job.request), job.id)
    plan = executor.plan(chat)
    if request.has_turns:
        encoder = ResponseEncoder(request, id=job.id, created=created, model=model)
        return _complete_turns(call, request, chat, plan, encoder)
    answer = executor.complete(chat, plan)
    return protocol.whole(request, answer.value, id=job.id, created=created, model=model)


def _request(
    call: LiveCall,
    body: JsonObject,
    id: str,
    history: Sequence[Mapping[str, Any]] | None = None,
) -> ResponsesRequest:
    """The request, with the conversation that it continues; the ids of its items contain that of
    the response.

    Args:
        history: the conversation's items; None takes them from the store.
    """
    services, owner = call.services, call.owner
    before = protocol.previous_of(body)
    if history is None:
        history = services.responses.history(owner, before.id) if before.id else ()
    tool = image_tool.requested(body)
    parse = partial(
        protocol.parse_request,
        body,
        history=history,
        stored=_named(services.responses, owner, before.references),
        seed=id,
        strict=services.settings.strict,
        images=None if tool is None else _offer(call, tool),
        offer=_tools_of(call, body) if openai_tools.is_requested(body) else None,
    )
    return apart(parse) if body.is_long or len(history) >= _LONG_HISTORY else parse()


def _tools_of(call: LiveCall, body: JsonObject) -> Offer | None:
    """The tools that the client may use, also of servers that it has brought.

    Raises:
        ApiError: one of those cannot be used.
    """
    if call.services.tool_runner is None:
        return None
    servers = foreign.in_openai_tools(body)
    if body.get("background") is True and any(each.headers for each in servers):
        raise BadRequest(
            "A request in the background is stored until it is answered, and what is secret of a "
            "server of tools is not. Leave 'background' out, or 'authorization' and 'headers'.",
            param="background",
            code="unsupported_value",
        )
    return server_tools.offer_of(call, servers)


def _offer(call: LiveCall, tool: Mapping[str, Any]) -> ImageOffer | None:
    """The model that can make pictures for this request, or None."""
    return offer_of(
        call.services.router,
        json_access.text(tool.get("model")) or "",
        call.services.settings.image_model,
        permit=generation.permit_of(call),
    )


def _named(
    store: ResponseStore, owner: str, references: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Stored items by their ids, which begin with a word and then have the id of their response."""
    found: dict[str, dict[str, Any]] = {}
    for id in {_PREFIX + reference.split("_")[1] for reference in references if "_" in reference}:
        if (stored := store.get(owner, id)) is not None:
            items = (*stored.input_items, *(stored.response.get("output") or ()))
            found |= {str(item.get("id")): item for item in items}
    return found


def _stored(id: str) -> Stored:
    call = lifecycle.live()
    # In this order: it leaves the queue when its end is stored.
    found = background.known(call, id) or call.services.responses.get(call.owner, id)
    if found is None:
        raise _not_found(id)
    return found


def _not_found(id: str) -> NotFound:
    return NotFound(f"Response with id '{id[:128]}' not found.", param="id")


class _Storing:
    """Stores the response of one request, unless its client asked not to."""

    def __init__(self, store: ResponseStore, owner: str, request: ResponsesRequest) -> None:
        self._store = store
        self._owner = owner
        self._request = request

    def put(self, response: dict[str, Any]) -> bool:
        """Store it; returns whether what its client wanted of the store is done."""
        request = self._request
        return not request.store or self._store.put(
            self._owner, response, request.input_items, request.previous_response_id
        )
