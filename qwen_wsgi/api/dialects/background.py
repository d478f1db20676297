"""Responses in the background: how one begins, what is told of it, and the call that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import CallCancelled, ClientGone
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.responses import ResponsesRequest, background
from qwen_wsgi.services import Services
from qwen_wsgi.state.database.background import Job
from qwen_wsgi.state.database.responses import Stored
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.routing.router import Plan

#: What the log names as the method of the call that makes one: no client is connected.
_METHOD: Final = "BACKGROUND"
_PATH: Final = "/v1/responses"


def begin(
    call: LiveCall,
    request: ResponsesRequest,
    chat: ChatCall,
    plan: Plan,
    response: dict[str, Any],
    body: bytes,
) -> dict[str, Any]:
    """Put a response into the queue; the object that tells of it.

    Args:
        response: that object.
        body: the client's request, from which the response is made later.

    Raises:
        ApiError: this server makes none, or has no room for one more.
    """
    services, settings, wanted = call.services, call.services.settings, request.background
    assert wanted is not None
    if call.client is not None and call.client.web is not None:
        raise validation.unsupported(
            "background",
            "A call with a web token cannot go on in the background: the token is not kept. Leave "
            "it out.",
        )
    if not settings.background or not settings.responses_ttl_s:
        name = "QWEN_PROXY_RESPONSES_TTL" if settings.background else "QWEN_PROXY_BACKGROUND"
        raise validation.unsupported(
            "background",
            f"This server makes no responses in the background ({name}=0). Leave it out.",
        )
    changed = chat.changed
    if wanted.half_price and plan.ordinary is None:
        changed = (*changed, background.USUAL)
    call.record.changed = changed
    services.background.queue.add(
        call.owner,
        call.record.client,
        deadline=services.clock.now() + (wanted.window_s or settings.background_timeout_s),
        stored=Stored(response, request.input_items, request.previous_response_id),
        headers=generation.kept_headers(call.environ),
        request=body,
    )
    services.background.wake()
    return response


def known(call: LiveCall, id: str) -> Stored | None:
    """A response of the caller that is still in the queue, as it is now.

    Raises:
        ApiError: 503: the queue cannot be read.
    """
    job = call.services.background.queue.get(call.owner, id)
    if job is None or job.has_ended:
        return None if job is None else job.stored
    status = background.QUEUED if job.is_queued else background.RUNNING
    return replace(job.stored, response={**job.stored.response, "status": status})


def worker(
    services: Services, make: Callable[[LiveCall, Job], dict[str, Any]]
) -> Callable[[Job], dict[str, Any]]:
    """What makes one response of the queue: a call of its own, with its line in the ledger.

    Args:
        make: makes the response; raises ApiError.
    """

    def work(job: Job) -> dict[str, Any]:
        record = CallRecord(
            request_id=job.id,
            method=_METHOD,
            path=_PATH,
            endpoint=_PATH,
            client=job.client,
            client_id=job.owner,
            started_at=services.clock.monotonic(),
        )
        call = LiveCall(record=record, services=services, environ=dict(job.headers))
        try:
            call.know(services.guard.client_again(job.owner, job.client))
            response = background.told(make(call, job), record.account, record.changed)
            record.status = 200
        except (Exception, ClientGone, CallCancelled) as error:
            record.fail(error)
            raise
        except BaseException:
            record.outcome = "cut_by_stop"
            raise
        finally:
            call.close()
        return response

    return work
