"""What all dialects share: a chat call of the current request, its whole answer or its stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from flask import Response

from qwen_wsgi.access.cache_policy import CachePolicy, policy_of
from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.permit import EVERYTHING, Permit
from qwen_wsgi.api import http
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import tokens
from qwen_wsgi.protocol.chat import ChatEncoder, ChatRequest
from qwen_wsgi.protocol.encoder import Encoder
from qwen_wsgi.protocol.json_access import integer
from qwen_wsgi.protocol.sse import PASSAGE
from qwen_wsgi.state.database.host_objects import HostObjects
from qwen_wsgi.tools.relay import TurnRelay, Turns
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.relay import Passage, Relay, no_passage
from qwen_wsgi.upstream.routing.affinity import HEADERS, conversation_key
from qwen_wsgi.upstream.routing.router import Plan

#: How many proxies of our kind a call has gone through: one behind another is all right.
_HOPS: Final = "X-Qwen-Proxy-Hops"
_HOPS_WSGI: Final = "HTTP_X_QWEN_PROXY_HOPS"
_MOST_HOPS: Final = 3

_CACHE_CONTROL: Final = "HTTP_CACHE_CONTROL"

#: Switches of DashScope that a client may set, as WSGI spells them. The others choose whose
#: workspace is used, or another kind of answer, and are the operator's.
_DASHSCOPE: Final = (
    "HTTP_X_DASHSCOPE_WAIT_TIMEOUT",
    "HTTP_X_DASHSCOPE_CACHECONTROL",
    "HTTP_X_DASHSCOPE_DATAINSPECTION",
    "HTTP_X_DASHSCOPE_SESSION",
)


def chat_call(call: LiveCall, chat: ChatRequest, changed: tuple[str, ...] = ()) -> ChatCall:
    """The chat call that the current request is.

    Args:
        changed: what the translation into chat changed or dropped.
    """
    environ, record = call.environ, call.record
    record.stream, record.model = chat.stream, chat.model
    if call.budget is not None:
        prompt = call.prompt_tokens
        call.budget.expect(tokens.quick(chat.body) if prompt is None else prompt, _answer_of(chat))
    return ChatCall(
        chat,
        forwarded_headers(environ),
        record,
        permit=permit_of(call),
        conversation=lambda: conversation_key(chat.body, environ, client=record.client_id),
        changed=changed,
        # Not the call itself: it holds the relay, which holds this.
        account_of_file=partial(_account_of_file, call.services.host_objects, call.client),
        cache=cache_policy(call),
    )


def cache_policy(call: LiveCall) -> CachePolicy | None:
    """What a call may do with the response cache, by its key, the server's setting, and its
    header; None: nothing, as mostly."""
    key = None if call.client is None else call.client.key
    ttl_s = call.services.settings.response_cache_s
    if key is not None and key.cache is not None:
        ttl_s = key.cache
    return policy_of(call.owner, ttl_s, call.environ.get(_CACHE_CONTROL, "")) if ttl_s else None


def _answer_of(chat: ChatRequest) -> int | None:
    """The most tokens that the client allows for an answer, or None."""
    named = (chat.body.get("max_completion_tokens"), chat.body.get("max_tokens"))
    if named == (None, None):
        return None
    counts = [count for each in named if (count := integer(each)) is not None]
    return max(counts, default=None)


def _account_of_file(objects: HostObjects, client: Client | None, id: str) -> str | None:
    assert client is not None, "check_caller comes first"
    found = objects.get("file", client.id, id)
    return None if found is None else found.account


def stream(call: LiveCall, chat: ChatCall, plan: Plan, encoder: Encoder) -> Response:
    """Answer with a stream of events, rendered by `encoder`.

    Raises:
        ApiError: no account answered, and nothing was sent to the client yet.
    """
    services = call.services
    relay = call.relay = Relay(
        partial(services.executor.stream, chat, plan),
        settings=services.settings,
        clock=services.clock,
        encoder=encoder,
        record=call.record,
        write_record=call.write_record,
        passage=_passage(call, encoder),
    )
    relay.wait_first()
    return http.event_stream(relay)


def _passage(call: LiveCall, encoder: Encoder) -> Passage:
    """How events may leave that need not be looked at any more: those of chat, as they are."""
    # A recording is made of what is yielded.
    if encoder.__class__ is not ChatEncoder or call.recording is not None:
        return no_passage
    found: Passage = call.environ.get(PASSAGE, no_passage)
    return found


def stream_turns(call: LiveCall, turns: Turns) -> Response:
    """Answer with a stream of several turns. Raises as `stream`."""
    relay = call.relay = _turn_relay(call, turns, call.write_record)
    relay.wait_first()
    return http.event_stream(relay)


def complete_turns(call: LiveCall, turns: Turns) -> None:
    """Carry several turns to their end; their encoder has the answer.

    Raises:
        ApiError: one of them failed.
    """
    relay = _turn_relay(call, turns)
    try:
        relay.complete()
    finally:
        relay.close()


def _turn_relay(
    call: LiveCall, turns: Turns, write_record: Callable[[], None] = lambda: None
) -> TurnRelay:
    # The sum of several prompts is not the tokens of the one that was counted.
    call.count_as = None
    services = call.services
    return TurnRelay(
        turns,
        settings=services.settings,
        clock=services.clock,
        record=call.record,
        write_record=write_record,
    )


def permit_of(call: LiveCall) -> Permit:
    """What a call may use: the account of its header `x-qwen-account` alone, if it has one, and of
    accounts and models those of its client's key. Of a caller with a web token of its own the
    account of that one alone."""
    pinned: str = call.environ.get("HTTP_X_QWEN_ACCOUNT", "")
    key = None if call.client is None else call.client.key
    if call.client is not None and call.client.web is not None:
        return Permit(pinned, models=() if key is None else key.models, web=call.client.web)
    if key is None:
        return Permit(pinned) if pinned else EVERYTHING
    if not (pinned or key.accounts or key.models):
        return EVERYTHING
    return Permit(pinned, key.accounts, key.models)


def forwarded_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The headers for the upstream: the client's User-Agent, DashScope's own switches, and how many
    proxies of this kind the call has gone through.

    The User-Agent goes through as it is, because plans decide by it who may call; it is never
    made up.

    Raises:
        ApiError: 508: the call goes in circles.
    """
    headers = {}
    if "_X_DASHSCOPE_" in "\n".join(environ):  # mostly not: a look at each takes longer
        headers = {
            "X-DashScope-" + name[17:].replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith(_DASHSCOPE)
        }
    if agent := environ.get("HTTP_USER_AGENT"):
        headers["User-Agent"] = agent
    headers[_HOPS] = str(_hops(environ) + 1) if _HOPS_WSGI in environ else "1"
    return headers


def kept_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The headers that a call needs that is made when its request is long over, as WSGI spells
    them: what `chat_call` reads."""
    named = ("HTTP_USER_AGENT", "HTTP_X_QWEN_ACCOUNT", _HOPS_WSGI, _CACHE_CONTROL, *HEADERS)
    return {
        name: value
        for name, value in environ.items()
        if name in named or name.startswith(_DASHSCOPE)
    }


def _hops(environ: Mapping[str, Any]) -> int:
    value = environ.get(_HOPS_WSGI, "0")
    hops = int(value) if value.isdecimal() and len(value) < 4 else 0
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
