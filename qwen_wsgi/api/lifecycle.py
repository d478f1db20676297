"""The life of a call: admitted, watched, and recorded exactly once however it ends."""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flask import Request, Response, request

from qwen_wsgi.access.guard import request_id_of
from qwen_wsgi.accounting.ledger import CallRecord
from qwen_wsgi.errors import ApiError, ClientGone, UpstreamError, forget_frames
from qwen_wsgi.greenlets import Watch, watch_client
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.upstream.relay import Relay
from qwen_wsgi.upstream.retry import Course

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

    from qwen_wsgi.services import Services

#: Where Anthropic's API is, also for who does not name its version.
_MESSAGES: Final = "/v1/messages"

#: The current request's, each greenlet has its own. Flask's `g` is a proxy of four Python calls.
_LIVE: Final[ContextVar[LiveCall | None]] = ContextVar("live_call", default=None)


@dataclass
class LiveCall:
    """A call and what it holds: a place, a watch on its client, perhaps a relay.

    Attributes:
        services: the application's. They and `environ` are here because each look at one of Flask's
            proxies costs more than a microsecond, and there would be thirty of them in a call.
    """

    call: CallRecord
    services: Services
    environ: WSGIEnvironment
    admitted: bool = False
    watch: Watch | None = None
    relay: Relay | None = None
    course: Course | None = None
    closed: bool = field(default=False)

    @property
    def is_anthropic(self) -> bool:
        """Whether the client speaks Anthropic's API; its SDKs always name the version."""
        return "HTTP_ANTHROPIC_VERSION" in self.environ or self.call.path.startswith(_MESSAGES)

    def admit(self) -> None:
        """Take a place.

        Raises:
            Overloaded: no place is free.
        """
        self.services.admission.enter()
        self.admitted = True

    def take_course(self) -> None:
        """Note who was asked, how often, and how long the stages took."""
        call, course = self.call, self.course
        if course is None or course.route is None:
            return
        call.account = course.route.account.name
        call.model = course.route.model
        call.attempts = course.count
        call.queued_s = course.queued_s
        call.connect_s = course.connect_s
        call.first_byte_at = course.first_at

    def fail(self, error: BaseException) -> None:
        """Note why the call failed."""
        if isinstance(error, ApiError):
            upstream = isinstance(error, UpstreamError)
            fault = error.code == "internal_error"
            self.call.outcome = "upstream_error" if upstream else "failed" if fault else "refused"
            self.call.error_code = error.code or error.type
            self.call.status = error.status
        elif isinstance(error, ClientGone | GeneratorExit):
            forget_frames(error)  # one of Flask's knows it
            self.call.outcome = "client_gone"
            self.call.status = self.call.status or 499
        else:
            self.call.outcome = "failed"
            self.call.status = 500

    def close(self) -> None:
        """End the call: free what it holds and record it. Harmless when repeated."""
        if self.closed:
            return
        self.closed = True
        if self.watch is not None:
            self.watch.stop()
        try:
            if self.relay is not None:
                self.relay.close()
                self._take_stream_result(self.relay)
        finally:
            self.take_course()
            if self.admitted:
                self.services.admission.leave()
            self.call.ended_at = self.services.clock.monotonic()
            if self.call.outcome == "open":
                self.call.outcome = "complete"
            self.services.ledger.record(self.call)

    def _take_stream_result(self, relay: Relay) -> None:
        call = self.call
        call.usage = relay.usage
        call.longest_gap_s = relay.longest_gap_s
        call.upstream_request_id = relay.upstream_request_id
        if call.outcome == "open":
            call.outcome = relay.outcome
        if relay.error is not None:
            call.error_code = relay.error.code or relay.error.type


def live() -> LiveCall:
    """The call that the current request is."""
    found = _LIVE.get()
    assert found is not None, "no request"
    return found


def begin(its: Services) -> None:
    """Start the record of a request, before anything can fail."""
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]  # of its proxy
    environ = asked.environ
    _LIVE.set(
        LiveCall(
            call=CallRecord(
                request_id=request_id_of(environ) or "req_" + os.urandom(16).hex(),
                client="-",
                method=environ["REQUEST_METHOD"],
                path=asked.path,
                started_at=its.clock.monotonic(),
            ),
            services=its,
            environ=environ,
        )
    )


def check_caller() -> None:
    """Check the caller's key; for blueprints that are not open to everybody.

    Raises:
        ApiError: 401 or 403.
    """
    its = live()
    its.call.client = its.services.guard.identify(its.environ)


def read_body(its: LiveCall) -> JsonObject:
    """Take a place, read the JSON body, and from then on watch whether the client stays.

    The place comes first: bodies are large, and those of calls in flight are all that is held.

    Raises:
        ApiError: 400, 413 or 503.
    """
    its.admit()
    body = its.services.guard.read_body(its.environ)
    its.watch = watch_client(its.environ)
    return body


def finish_response(response: Response) -> Response:
    """Add the headers that every answer has, and tie a stream's end to the call's."""
    its = live()
    call = its.call
    headers = response.headers
    headers.add("x-request-id", call.request_id)
    if its.is_anthropic:
        headers.add("request-id", call.request_id)
    its.take_course()
    if call.account:
        headers.add("x-qwen-proxy-account", call.account)
        headers.add("x-qwen-proxy-attempts", str(call.attempts))
    if its.course is not None and its.course.changed:
        headers.add("x-qwen-proxy-changed", ", ".join(its.course.changed))
    if upstream_id := call.upstream_request_id or (
        its.relay.upstream_request_id if its.relay else ""
    ):
        headers.add("x-upstream-request-id", upstream_id)
    elapsed = its.services.clock.monotonic() - call.started_at
    headers.add("openai-processing-ms", str(round(elapsed * 1000)))
    if call.account:
        headers.add("server-timing", server_timing(call, elapsed))
    call.status = response.status_code
    if its.relay is not None:
        # The server calls this when the body was sent or its client is gone.
        response.call_on_close(its.close)
    return response


def server_timing(call: CallRecord, elapsed_s: float) -> str:
    """The stages of a call so far (W3C Server Timing): `queue;dur=0.0, connect;dur=2.1, …`.

    Milliseconds; `first` is from the call's arrival to the upstream's first event.
    """
    first = ""
    if call.first_byte_at is not None:
        first = f", first;dur={(call.first_byte_at - call.started_at) * 1000:.1f}"
    return (
        f"queue;dur={call.queued_s * 1000:.1f}, connect;dur={call.connect_s * 1000:.1f}{first}, "
        f"total;dur={elapsed_s * 1000:.1f}"
    )


def end(error: BaseException | None) -> None:
    """End the call with its request, unless a stream goes on beyond it."""
    its = _LIVE.get()
    if its is None:
        return
    _LIVE.set(None)
    if error is not None:
        its.fail(error)
    if its.relay is None or error is not None:
        its.close()
