"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import logging

from flask import Blueprint, Response
from werkzeug.exceptions import HTTPException

from qwen_wsgi.api import calls, replies, road
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol import messages, tokens
from qwen_wsgi.protocol.messages import errors
from qwen_wsgi.upstream.conversation import conversation_of

log = logging.getLogger(__name__)

blueprint = Blueprint("messages", __name__)
blueprint.before_request(calls.check_caller)

#: Behind the error for a Claude model that nobody serves.
_HINT = (
    " To have names of Claude models answered by a Qwen model, the operator of this proxy sets "
    "QWEN_PROXY_MODEL_ALIASES=claude-*=qwen3.8-max (or another model that it lists)."
)


@blueprint.post("/v1/messages")
def create() -> Response:
    """Answer a request, as a stream or as a whole."""
    live = calls.live()
    body = calls.read_body(live)
    request = messages.parse_request(body, strict=live.services.settings.strict)
    call = road.chat_call(live, request.chat, request.changed)
    if body.get("metadata") is not None:
        # `metadata.user_id` names account, machine and session: read here, and told nobody else.
        call.conversation = lambda: conversation_of(body, live.environ, client=live.call.client)
    plan = live.services.dispatcher.plan(call)
    id = "msg_" + live.call.request_id.removeprefix("req_")
    if not request.chat.stream:
        answer = road.whole(live, call, plan)
        return replies.json_value(messages.whole(request, answer.value, id=id))
    encoder = messages.MessagesEncoder(
        id=id,
        model=request.chat.model or plan.model,
        stops=request.stops,
        request_id=live.call.request_id,
    )
    return road.stream(live, call, plan, encoder)


@blueprint.post("/v1/messages/count_tokens")
def count_tokens() -> Response:
    """Count the tokens of a prompt, roughly: no upstream is asked."""
    body = calls.read_body(calls.live())
    return replies.json_value({"input_tokens": tokens.estimate(messages.parse_prompt(body))})


@blueprint.errorhandler(Exception)
def failed(error: Exception) -> Response:
    """The response for whatever went wrong, in Anthropic's form."""
    live = calls.live()
    if not isinstance(error, ApiError):
        error = _unexpected(error, live.call.request_id)
    live.fail(error)
    if error.code == "model_not_found" and live.call.model.startswith("claude"):
        error.message += _HINT
    return replies.error(error, errors.body(error, request_id=live.call.request_id))


def _unexpected(error: Exception, request_id: str) -> ApiError:
    if isinstance(error, HTTPException) and error.code and 400 <= error.code < 500:
        return ApiError(error.description or error.name, status=error.code)
    log.error("fault request_id=%s", request_id, exc_info=error)
    return ApiError(
        f"The proxy failed on this request. Its log has the details under request id {request_id}.",
        code="internal_error",
    )


@blueprint.after_request
def add_request_id(response: Response) -> Response:
    """Name the call as Anthropic does."""
    response.headers["request-id"] = calls.live().call.request_id
    return response
