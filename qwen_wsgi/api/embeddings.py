"""POST /v1/embeddings."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.generation import forwarded_headers
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.protocol import embeddings as protocol
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.protocol.validation import model_of
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.embed import embed
from qwen_wsgi.upstream.retry import Course
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Route

blueprint = Blueprint("embeddings", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.post("/v1/embeddings")
def create() -> Response:
    """Embed the rows of the request; any other OpenAI-compatible server gets it as it is."""
    live = lifecycle.live()
    services = live.services
    body = lifecycle.read_body(live)
    live.call.model = model_of(body)
    course = live.course = Course(client=live.call.client)
    plan = services.router.plan(live.call.model, pinned=live.environ.get("HTTP_X_QWEN_ACCOUNT", ""))
    headers = forwarded_headers(live.environ)

    def ask(route: Route, place: Slot) -> Response:
        # All rows at one account, or all at another one: a part is no answer.
        answer = _embed(live, services.client, route, body, headers)
        place.leave()
        return answer

    return services.attempts.run(plan, ask, course)


def _embed(
    live: LiveCall,
    client: UpstreamClient,
    route: Route,
    body: JsonObject,
    headers: dict[str, str],
) -> Response:
    if not route.account.family.is_qwen:
        changes = {} if body.get("model") == route.model else {"model": route.model}
        data, value, upstream_id = client.post_json(
            route.account, "/embeddings", body.render(changes), headers=headers
        )
        live.call.usage = parse_usage(value.get("usage"))
        live.call.upstream_request_id = upstream_id
        return http.json_bytes(data)
    checked = protocol.parse_request(body)
    bodies = protocol.upstream_bodies(checked, model=route.model)
    answers = embed(client, route.account, bodies, headers=headers)
    combined = protocol.combine(checked, answers, model=route.model)
    live.call.usage = parse_usage(combined["usage"])
    return http.json_value(combined)
