"""POST /v1/completions: OpenAI's API before chat."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import completions as protocol
from qwen_wsgi.protocol.completions import CompletionsEncoder, CompletionsRequest
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.upstream.answer_cache import is_fixed, is_whole
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.affinity import evidence_of
from qwen_wsgi.upstream.routing.router import Plan, Route

blueprint = Blueprint("completions", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Causes of a failure (`failures.causes`) which mean that a server has no such path.
_NO_SUCH_PATH: Final = frozenset({"wrong_address", "not_found"})


@blueprint.post("/v1/completions")
def create() -> Response:
    """Complete a prompt: natively where the upstream can, else by way of chat."""
    call = lifecycle.live()
    request = protocol.parse_request(call.read_body())
    call.record.stream, call.record.model = request.stream, request.model
    plan = call.services.router.plan(
        request.model,
        permit=generation.permit_of(call),
        # Only old models fill gaps: today's cannot stand in for them.
        literal=request.has_gap,
        evidence=partial(evidence_of, b"", request.body),
    )
    native = _native_plan(request, plan)
    if native is None or (answer := _ask_natively(call, request, native)) is None:
        return _by_chat(call, request, plan)
    answer = protocol.native_answer(answer, model=request.model or plan.model)
    if not request.stream:
        return http.json_value(answer)
    return http.event_stream([protocol.events_of(answer, with_usage=request.wants_usage)])


# --- by way of chat ------------------------------------------------------------------------------


def _by_chat(call: LiveCall, request: CompletionsRequest, plan: Plan) -> Response:
    executor, record = call.services.executor, call.record
    # Other hosts than Qwen's get no member that their clients did not send.
    thinking = not all(route.account.family.is_qwen for route in plan.routes)
    requests, changed = protocol.chat_requests(request, thinking=thinking)
    chats = [generation.chat_call(call, each, changed) for each in requests]
    head: dict[str, Any] = {
        "id": "cmpl-" + record.request_id,
        "model": request.model or plan.model,
        "created": int(call.services.clock.now()),
    }
    if request.stream:
        encoder = CompletionsEncoder(**head, with_usage=request.wants_usage)
        return generation.stream(call, chats[0], plan, encoder)
    if len(chats) == 1:
        answers = [executor.complete(chats[0], plan)]
    else:
        # Each prompt is an answer of its own, and the call has one line of what it used.
        parts = [replace(chat, record=record.part(), cache=None) for chat in chats]
        answers = executor.complete_each(record, parts, plan)
    whole = protocol.whole([answer.value for answer in answers], **head)
    record.usage = parse_usage(whole.get("usage"))
    return http.json_value(whole)


# --- natively ------------------------------------------------------------------------------------


def _native_plan(request: CompletionsRequest, plan: Plan) -> Plan | None:
    """The plan's accounts that take the request as it is; None to go by way of chat."""
    if request.has_gap:
        able = tuple(route for route in plan.routes if _is_own(route) or _fills_in(route))
    elif _is_own(plan.routes[0]):
        able = tuple(route for route in plan.routes if _is_own(route))
    else:  # the account that comes first can answer by way of chat
        able = ()
    return replace(plan, routes=able) if able else None


def _is_own(route: Route) -> bool:
    """Whether it is the operator's own server, which is taken to have /completions."""
    return route.account.explicit and not route.account.family.is_qwen


def _fills_in(route: Route) -> bool:
    hosts = (Family.DASHSCOPE, Family.SANDBOX)
    return route.account.family in hosts and protocol.fills_in(route.model)


def _ask_natively(call: LiveCall, request: CompletionsRequest, plan: Plan) -> Any:
    """The `text_completion` of an upstream, asked for as a whole even for a stream.

    Returns:
        None if the server has no /completions and chat may answer.

    Raises:
        ApiError: no account answered.
    """
    headers = generation.forwarded_headers(call.environ)
    unary = UnaryCall(
        "/completions",
        headers,
        call.record,
        lambda route: _native_request(request, route),
        # Not a failure of the account, which would cool down, for chats as well.
        absent=_NO_SUCH_PATH,
        cache=generation.cache_policy(call) if is_fixed(request.body) else None,
    )
    answer = call.services.executor.unary(unary, plan)
    if answer is not None:
        value = answer.answers[0].value
        if is_whole(value):
            answer.keep()
        return value
    if request.suffix is not None:
        raise ApiError(
            "The upstream has no /completions for this model, so it cannot fill in the middle. Of "
            "Model Studio's regions only Beijing has it.",
            status=400,
            type="invalid_request_error",
            code="unsupported_parameter",
            param="suffix",
        )
    return None


def _native_request(request: CompletionsRequest, route: Route) -> UnaryRequests:
    changed: tuple[str, ...] = ("stream:whole",) if request.stream else ()
    if _is_own(route):
        return UnaryRequests([protocol.native_body(request, model=route.model)], changed)
    if request.suffix is not None:
        changed += ("suffix:in-template",)
    return UnaryRequests([protocol.gap_body(request, model=route.model)], changed)
