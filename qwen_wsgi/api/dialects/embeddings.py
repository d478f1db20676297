"""POST /v1/embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.hosts import has_native_api
from qwen_wsgi.protocol import embeddings as protocol
from qwen_wsgi.protocol.embeddings import EmbeddingRequest
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.protocol.validation import model_of
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.affinity import evidence_of
from qwen_wsgi.upstream.routing.router import Plan, Route, not_available

blueprint = Blueprint("embeddings", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.post("/v1/embeddings")
def create() -> Response:
    """Embed the rows of the request; any other OpenAI-compatible server gets it as it is."""
    call = lifecycle.live()
    services, record = call.services, call.record
    body = call.read_body()
    record.model = model_of(body)
    plan = services.router.plan(
        record.model,
        permit=generation.permit_of(call),
        capability=Capability.EMBEDDING,
        evidence=partial(evidence_of, b"", body),
    )
    headers = generation.forwarded_headers(call.environ)
    # Other servers may know more forms of it, so only what goes to Qwen's hosts is checked.
    checked = functools.cache(lambda: protocol.parse_request(body))
    requests = partial(_requests, body, checked, services.settings.strict)
    cache = generation.cache_policy(call)
    unary = UnaryCall("/embeddings", headers, record, requests, cache=cache)
    answer = services.executor.unary(unary, _able(plan))
    assert answer is not None  # no cause is taken for a missing path
    if not answer.route.account.family.is_qwen:
        answer.keep()
        return http.json_bytes(answer.answers[0].body)
    values = [each.value for each in answer.answers]
    combined = protocol.combine(checked(), values, model=answer.route.model)
    record.usage = parse_usage(combined["usage"])
    record.units = (("embeddings", len(combined["data"])),)
    answer.keep()
    return http.json_value(combined)


def _able(plan: Plan) -> Plan:
    """The plan without the hosts that have no route for a model of pictures and videos.

    Raises:
        ApiError: 501: none has.
    """
    routes = tuple(
        route
        for route in plan.routes
        if not _is_native(route) or has_native_api(route.account.family)
    )
    if not routes:
        raise not_available(f"`{plan.model}` is", "the native route that this model needs")
    return replace(plan, routes=routes)


def _is_native(route: Route) -> bool:
    return route.account.family.is_qwen and protocol.takes_media(route.model)


def _requests(
    body: JsonObject, checked: Callable[[], EmbeddingRequest], strict: bool, route: Route
) -> UnaryRequests:
    if route.account.family.is_qwen:
        calls = protocol.calls_for(checked(), model=route.model, strict=strict)
        return UnaryRequests(calls.bodies, calls.changed, calls.native_path)
    changes = {} if body.get("model") == route.model else {"model": route.model}
    return UnaryRequests([body.render(changes)])
