"""OpenAI's Responses API: POST /v1/responses, and what can be done with a stored response."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

from flask import Blueprint, Response, request

from qwen_wsgi.api import generation, http, lifecycle
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import BadRequest, NotFound
from qwen_wsgi.protocol import responses as protocol
from qwen_wsgi.protocol import tokens
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.responses import ResponseEncoder, ResponsesRequest
from qwen_wsgi.state.responses import ResponseStore, Stored

blueprint = Blueprint("responses", __name__)
blueprint.before_request(lifecycle.check_caller)

_PREFIX: Final = "resp_"
_ID_BYTES: Final = 24

#: Items of a page of `input_items`: OpenAI's default, and most.
_PAGE: Final = 20
_LARGEST_PAGE: Final = 100


@blueprint.post("/v1/responses")
def create() -> Response:
    """Answer a request, as a stream of events or as a whole, and keep it if the client wants."""
    live = lifecycle.live()
    services = live.services
    id = _PREFIX + os.urandom(_ID_BYTES).hex()
    asked = _request(live, lifecycle.read_body(live), id)
    call = generation.chat_call(live, asked.chat, asked.changed)
    plan = services.dispatcher.plan(call)
    created, model = int(services.clock.now()), asked.model or plan.model
    keep = _Keep(services.responses, _owner(live), asked)
    if asked.stream:
        encoder = _Keeping(ResponseEncoder(asked, id=id, created=created, model=model), keep)
        return generation.stream(live, call, plan, encoder)
    answer = generation.whole(live, call, plan)
    told = protocol.whole(asked, answer.value, id=id, created=created, model=model)
    keep.put(told)
    return http.json_value(told)


@blueprint.post("/v1/responses/input_tokens")
def count_tokens() -> Response:
    """How many tokens a request would be: `{"object": "response.input_tokens", "input_tokens"}`.

    An estimate (`protocol/tokens`): Qwen's hosts count only what they answer.
    """
    live = lifecycle.live()
    asked = _request(live, lifecycle.read_body(live), "")
    count = tokens.estimate(asked.chat.body)
    return http.json_value({"object": "response.input_tokens", "input_tokens": count})


@blueprint.get("/v1/responses/<id>")
def retrieve(id: str) -> Response:
    """A stored response."""
    if request.args.get("stream", "") == "true":
        raise BadRequest(
            "A stored response cannot be streamed again: only responses in the background can, "
            "and this server has none.",
            param="stream",
            code="unsupported_parameter",
        )
    return http.json_value(_stored(id).response)


@blueprint.delete("/v1/responses/<id>")
def delete(id: str) -> Response:
    """Forget a stored response: `{"id", "object": "response", "deleted": true}`."""
    live = lifecycle.live()
    if not live.services.responses.delete(_owner(live), id):
        raise _not_found(id)
    return http.json_value({"id": id, "object": "response", "deleted": True})


@blueprint.post("/v1/responses/<id>/cancel")
def cancel(id: str) -> Response:
    """No response runs in the background, so there is none that could be cancelled."""
    _stored(id)
    raise BadRequest("Cannot cancel a synchronous response.", code="unsupported_operation")


@blueprint.get("/v1/responses/<id>/input_items")
def input_items(id: str) -> Response:
    """What the client sent with a stored response: `{"object": "list", "data": [item],
    "first_id", "last_id", "has_more"}`, the latest first unless `order=asc`."""
    items = _stored(id).input_items
    order = request.args.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order' is 'asc' or 'desc'.", param="order", code="invalid_value")
    if order == "desc":
        items = items[::-1]
    ids = [str(item.get("id")) for item in items]
    if (after := request.args.get("after")) is not None:
        if after not in ids:
            raise BadRequest(f"No item has the id '{after[:64]}'.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[: _limit()]
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


def _limit() -> int:
    asked = request.args.get("limit", str(_PAGE))
    if not (asked.isdecimal() and len(asked) <= 4 and 1 <= int(asked) <= _LARGEST_PAGE):
        raise BadRequest(
            f"'limit' is a number from 1 to {_LARGEST_PAGE}.", param="limit", code="invalid_value"
        )
    return int(asked)


def _request(live: LiveCall, body: JsonObject, id: str) -> ResponsesRequest:
    """The request, with the conversation that it continues; its items' ids have that of the
    response in them."""
    services, owner = live.services, _owner(live)
    before = protocol.previous_of(body)
    return protocol.parse_request(
        body,
        history=services.responses.history(owner, before.id) if before.id else (),
        stored=_named(services.responses, owner, before.references),
        seed=id,
        strict=services.settings.strict,
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


def _owner(live: LiveCall) -> str:
    return live.services.guard.owner(live.environ)


def _stored(id: str) -> Stored:
    live = lifecycle.live()
    found = live.services.responses.get(_owner(live), id)
    if found is None:
        raise _not_found(id)
    return found


def _not_found(id: str) -> NotFound:
    return NotFound(f"Response with id '{id[:128]}' not found.", param="id")


class _Keep:
    """Stores the response of one request, if its client did not say no."""

    def __init__(self, store: ResponseStore, owner: str, asked: ResponsesRequest) -> None:
        self._store = store
        self._owner = owner
        self._asked = asked

    def put(self, response: dict[str, Any] | None) -> None:
        asked = self._asked
        if asked.store and response is not None:
            self._store.put(self._owner, response, asked.input_items, asked.previous_response_id)


class _Keeping:
    """An encoder whose response is stored before its last event is told: who has that event may
    ask for the response at once."""

    def __init__(self, encoder: ResponseEncoder, keep: _Keep) -> None:
        self._encoder = encoder
        self._keep = keep
        self.ends_after_failure = encoder.ends_after_failure
        self.feed = encoder.feed
        self.fail = encoder.fail
        self.keep_alive = encoder.keep_alive

    def end(self) -> bytes:
        told = self._encoder.end()
        self._keep.put(self._encoder.response)
        return told
