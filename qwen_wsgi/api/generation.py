"""The road that every generation takes, whatever dialect its client speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flask import Response

from qwen_wsgi.api import http
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.upstream.client import Answer
from qwen_wsgi.upstream.executor import ChatCall
from qwen_wsgi.upstream.relay import Relay
from qwen_wsgi.upstream.retry import Course
from qwen_wsgi.upstream.routing.affinity import conversation_of
from qwen_wsgi.upstream.routing.router import Plan

#: How many proxies of our kind a call has gone through: one behind another is all right.
_HOPS: Final = "X-Qwen-Proxy-Hops"
_HOPS_WSGI: Final = "HTTP_X_QWEN_PROXY_HOPS"
_MOST_HOPS: Final = 3


def chat_call(live: LiveCall, chat: ChatRequest, changed: tuple[str, ...] = ()) -> ChatCall:
    """What the dispatcher needs of the current request.

    Args:
        changed: what the translation into chat changed or dropped.
    """
    environ = live.environ
    call = live.call
    call.stream, call.model = chat.stream, chat.model
    live.course = Course(client=call.client)
    return ChatCall(
        chat,
        forwarded_headers(environ),
        pinned=environ.get("HTTP_X_QWEN_ACCOUNT", ""),
        conversation=lambda: conversation_of(chat.body, environ, client=call.client),
        changed=changed,
        course=live.course,
    )


def whole(live: LiveCall, call: ChatCall, plan: Plan) -> Answer:
    """A whole answer, in chat's form.

    Raises:
        ApiError: nobody answered.
    """
    answer = live.services.dispatcher.complete(call, plan)
    live.call.usage = answer.usage
    live.call.upstream_request_id = answer.upstream_request_id
    return answer


def stream(live: LiveCall, call: ChatCall, plan: Plan, encoder: Encoder) -> Response:
    """An answer as a stream of events, told by `encoder`.

    Raises:
        ApiError: nobody answered, and the client was not told anything yet.
    """
    services = live.services
    relay = live.relay = Relay(
        lambda: services.dispatcher.stream(call, plan),
        settings=services.settings,
        clock=services.clock,
        encoder=encoder,
        call_id=live.call.request_id,
    )
    relay.wait_first()
    return http.event_stream(relay)


def forwarded_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The client's headers that the upstream gets: who it is, and DashScope's own switches; and how
    many of our kind the call has gone through.

    The User-Agent goes through as it is, because plans decide by it who may call; it is never
    made up.

    Raises:
        ApiError: 508: the call goes in circles.
    """
    headers = {
        "X-DashScope-" + name[17:].replace("_", "-").title(): value
        for name, value in environ.items()
        if name.startswith("HTTP_X_DASHSCOPE_")
    }
    if agent := environ.get("HTTP_USER_AGENT"):
        headers["User-Agent"] = agent
    headers[_HOPS] = str(_hops(environ) + 1)
    return headers


def _hops(environ: Mapping[str, Any]) -> int:
    told = environ.get(_HOPS_WSGI, "0")
    hops = int(told) if told.isdecimal() and len(told) < 4 else 0
    if hops >= _MOST_HOPS:
        raise ApiError(
            f"This call has gone through qwen-proxy {hops} times, so one of its accounts leads "
            "back to it: most likely qwen-code's settings name this server as a model provider, "
            "where the server itself looks for accounts. `qwen-proxy status` shows them.",
            status=508,
            code="loop_detected",
            should_retry=False,
        )
    return hops
