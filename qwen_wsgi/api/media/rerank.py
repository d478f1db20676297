"""POST /v1/rerank: ranks documents, in the form of Cohere and Jina."""

from __future__ import annotations

from functools import partial
from typing import Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.flask_app import ROUTE_PATH
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.protocol import rerank as protocol
from qwen_wsgi.protocol.rerank import RerankRequest
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.affinity import evidence_of
from qwen_wsgi.upstream.routing.router import Route

blueprint = Blueprint("rerank", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Cohere's second version, whose answers have no documents.
_COHERE_2: Final = "/v2/rerank"


@blueprint.post("/v1/rerank")
@blueprint.post("/v1/reranks")
@blueprint.post(_COHERE_2)
def create() -> Response:
    """Rank the documents of the request."""
    call = lifecycle.live()
    services, record = call.services, call.record
    request = protocol.parse_request(call.read_body())
    record.model = request.model
    plan = services.router.plan(
        request.model,
        permit=generation.permit_of(call),
        capability=Capability.RERANK,
        evidence=partial(evidence_of, b"", request.body),
    )
    unary = UnaryCall(
        protocol.COMPATIBLE_PATH,
        generation.forwarded_headers(call.environ),
        record,
        partial(_requests, request, services.settings.strict),
        at_origin=True,
        cache=generation.cache_policy(call),
    )
    answer = services.executor.unary(unary, plan)
    assert answer is not None  # no cause is taken for a missing path
    made = protocol.answer(
        request,
        answer.answers[0].value,
        model=request.model,
        fallback_id="rerank-" + record.request_id,
        with_texts=call.environ[ROUTE_PATH] != _COHERE_2,
    )
    record.usage = parse_usage(made["usage"])
    record.units = (("documents", len(request.documents)),)
    answer.keep()
    return http.json_value(made)


def _requests(request: RerankRequest, strict: bool, route: Route) -> UnaryRequests:
    path, body, changed = protocol.call_for(request, model=route.model, strict=strict)
    return UnaryRequests([body], changed, path)
