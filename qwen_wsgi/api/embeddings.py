"""POST /v1/embeddings."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, Response

from qwen_wsgi.api import generation, http, lifecycle
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.protocol import embeddings as protocol
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.protocol.validation import model_of
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.affinity import evidence_of
from qwen_wsgi.upstream.routing.router import Route

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
        pinned=generation.pinned_account(call.environ),
        capability=Capability.EMBEDDING,
        evidence=partial(evidence_of, b"", body),
    )
    headers = generation.forwarded_headers(call.environ)
    unary = UnaryCall("/embeddings", headers, record, lambda route: _requests(body, route))
    answer = services.executor.unary(unary, plan)
    assert answer is not None  # no cause is taken for a missing path
    if not answer.route.account.family.is_qwen:
        return http.json_bytes(answer.answers[0].body)
    values = [each.value for each in answer.answers]
    checked = protocol.parse_request(body)
    combined = protocol.combine(checked, values, model=answer.route.model)
    record.usage = parse_usage(combined["usage"])
    return http.json_value(combined)


def _requests(body: JsonObject, route: Route) -> UnaryRequests:
    if route.account.family.is_qwen:
        checked = protocol.parse_request(body)
        return UnaryRequests(protocol.upstream_bodies(checked, model=route.model))
    changes = {} if body.get("model") == route.model else {"model": route.model}
    return UnaryRequests([body.render(changes)])
