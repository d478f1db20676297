"""POST /v1/completions: OpenAI's API before chat."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import generation, http, lifecycle
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.greenlets import in_order
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import completions as protocol
from qwen_wsgi.protocol.completions import CompletionsEncoder, CompletionsRequest
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.upstream.client import Answer
from qwen_wsgi.upstream.executor import ChatCall
from qwen_wsgi.upstream.failures.classify import failure_of
from qwen_wsgi.upstream.retry import Course
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Plan, Route

blueprint = Blueprint("completions", __name__)
blueprint.before_request(lifecycle.check_caller)

_PATH: Final = "/completions"

#: Causes of a failure (`causes`) that say that a server has no such path.
_NO_SUCH_PATH: Final = frozenset({"wrong_address", "not_found"})

#: Prompts of one request that are answered at a time.
_AT_A_TIME: Final = 4


@blueprint.post("/v1/completions")
def create() -> Response:
    """Complete a prompt: natively where the upstream can, else by way of chat."""
    live = lifecycle.live()
    asked = protocol.parse_request(lifecycle.read_body(live))
    live.call.stream, live.call.model = asked.stream, asked.model
    plan = live.services.router.plan(
        asked.model, pinned=live.environ.get("HTTP_X_QWEN_ACCOUNT", "")
    )
    natives = _natives(asked, plan)
    if natives and (answer := _ask_natively(live, asked, natives)) is not None:
        answer = protocol.native_answer(answer, model=asked.model or plan.model)
        if not asked.stream:
            return http.json_value(answer)
        return http.event_stream([protocol.events_of(answer, with_usage=asked.wants_usage)])
    return _by_chat(live, asked, plan)


# --- by way of chat ------------------------------------------------------------------------------


def _by_chat(live: LiveCall, asked: CompletionsRequest, plan: Plan) -> Response:
    # Other hosts than Qwen's get no member that their clients did not send.
    thinking = not all(route.account.family.is_qwen for route in plan.routes)
    chats, changed = protocol.chat_requests(asked, thinking=thinking)
    each = [generation.chat_call(live, chat, changed) for chat in chats]
    live.course = each[0].course
    head: dict[str, Any] = {
        "id": "cmpl-" + live.call.request_id,
        "model": asked.model or plan.model,
        "created": int(live.services.clock.now()),
    }
    if asked.stream:
        encoder = CompletionsEncoder(**head, with_usage=asked.wants_usage)
        return generation.stream(live, each[0], plan, encoder)
    if len(each) == 1:
        answers = [generation.whole(live, each[0], plan)]
    else:
        answers = _whole_of_each(live, each, plan)
    told = protocol.whole([answer.value for answer in answers], **head)
    live.call.usage = parse_usage(told.get("usage"))
    return http.json_value(told)


def _whole_of_each(live: LiveCall, each: list[ChatCall], plan: Plan) -> list[Answer]:
    """Answers in the order of the calls; the first failure, or the client's going away, stops those
    that are under way."""
    complete = live.services.dispatcher.complete
    course = live.course = Course(client=live.call.client)
    works = (partial(complete, call, plan) for call in each)
    try:
        answers = list(in_order(works, at_a_time=_AT_A_TIME))
    finally:
        begun = [call.course for call in each if call.course.route is not None]
        course.count = sum(one.count for one in begun)
        if begun:
            course.route, course.changed = begun[0].route, begun[0].changed
    live.call.upstream_request_id = answers[0].upstream_request_id
    return answers


# --- natively ------------------------------------------------------------------------------------


def _natives(asked: CompletionsRequest, plan: Plan) -> Plan | None:
    """Those of the plan's accounts that take the request as it is; None to go by way of chat."""
    if asked.has_gap:
        able = tuple(route for route in plan.routes if _own(route) or _fills_in(route))
    elif _own(plan.routes[0]):
        able = tuple(route for route in plan.routes if _own(route))
    else:  # whoever comes first is to answer, and can do it by chat
        able = ()
    return replace(plan, routes=able) if able else None


def _own(route: Route) -> bool:
    """Whether it is the operator's own server, which is believed to know completions."""
    return route.account.explicit and not route.account.family.is_qwen


def _fills_in(route: Route) -> bool:
    hosts = (Family.DASHSCOPE, Family.SANDBOX)
    return route.account.family in hosts and protocol.fills_in(route.model)


def _ask_natively(live: LiveCall, asked: CompletionsRequest, plan: Plan) -> Any:
    """The `text_completion` of an upstream, asked as a whole even for a stream; None if the server
    knows no completions and chat may answer.

    Raises:
        ApiError: nobody answered.
    """
    services, call = live.services, live.call
    headers = generation.forwarded_headers(live.environ)
    course = live.course = Course(client=call.client)

    def ask(route: Route, place: Slot) -> Any:
        course.changed, body = _native_request(asked, route)
        try:
            _, value, upstream_id = services.client.post_json(
                route.account, _PATH, body, headers=headers
            )
        except UpstreamError as error:
            failure = failure_of(error)
            if failure is None or failure.cause not in _NO_SUCH_PATH:
                raise
            # Not passed on as a failure: the account would be left alone, by chats as well.
            value = None
        else:
            call.usage, call.upstream_request_id = parse_usage(value.get("usage")), upstream_id
        place.leave()
        return value

    answer = services.attempts.run(plan, ask, course)
    if answer is None and asked.suffix is not None:
        raise ApiError(
            "The upstream has no /completions for this model, so it cannot fill in the middle. Of "
            "Model Studio's regions only Beijing has it.",
            status=400,
            type="invalid_request_error",
            code="unsupported_parameter",
            param="suffix",
        )
    return answer


def _native_request(asked: CompletionsRequest, route: Route) -> tuple[tuple[str, ...], bytes]:
    """What is changed, for the header, and the body."""
    changed: tuple[str, ...] = ("stream:whole",) if asked.stream else ()
    if _own(route):
        return changed, protocol.native_body(asked, model=route.model)
    if asked.suffix is not None:
        changed += ("suffix:in-template",)
    return changed, protocol.gap_body(asked, model=route.model)
