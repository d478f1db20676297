"""The life of a call: admitted, watched, and recorded exactly once however it ends."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from flask import Response

from qwen_wsgi.access import connections
from qwen_wsgi.access.budget import Budget
from qwen_wsgi.access.guard import Client
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api import body, cors
from qwen_wsgi.api.body import Form
from qwen_wsgi.api.flask_app import CALL, ENDPOINT, ROUTE_PATH, add_headers, asked, spelt
from qwen_wsgi.errors import ApiError
from qwen_wsgi.greenlets import Watch, apart, current, watch_client
from qwen_wsgi.protocol import changes
from qwen_wsgi.protocol.json_object import JsonObject, loads
from qwen_wsgi.protocol.server_tools.foreign import recordable
from qwen_wsgi.services import Services
from qwen_wsgi.state.recordings import Recording

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

#: Where Anthropic's API is, also for clients that do not name its version.
_MESSAGES: Final = "/v1/messages"

#: What an upload takes of the worker's memory: a few pieces on their way.
_UPLOAD_BYTES: Final = 512 * 1024

#: Headers that are never written down.
_SECRET_HEADERS: Final = frozenset(
    {"HTTP_AUTHORIZATION", "HTTP_X_API_KEY", "HTTP_X_QWEN_TOKEN", "HTTP_COOKIE"}
    | {"HTTP_PROXY_AUTHORIZATION"}
)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

#: The current request's; each greenlet has its own. Flask's `g` is a proxy of four Python calls.
_LIVE: Final[ContextVar[LiveCall | None]] = ContextVar("live_call", default=None)


class Carrier(Protocol):
    """Carries the body of an answer after its head, and holds the upstream meanwhile."""

    def __iter__(self) -> Iterator[bytes]:
        """The body, as it comes."""

    def close(self) -> None:
        """Free what it holds. Harmless when repeated."""


@dataclass(slots=True)
class LiveCall:
    """A call while it runs: its record, and the resources that it holds.

    Attributes:
        services: the application's. They and `environ` are here because each look at one of Flask's
            proxies costs more than a microsecond, and there would be thirty of them in a call.
        client: the caller, once it is known.
        relay: carries the answer, if that is a stream.
        body_bytes: what the body takes of the worker's memory, until the call is closed.
    """

    record: CallRecord
    services: Services
    environ: WSGIEnvironment
    client: Client | None = None
    admitted: bool = False
    body_bytes: int = 0
    watch: Watch | None = None
    #: What the answer is carried by after its head.
    relay: Carrier | None = None
    #: The answer goes on after its head; else all of it is there, also where there is a relay.
    goes_on: bool = False
    closed: bool = False
    #: What the call takes of its client's limits; None if the client has none.
    budget: Budget | None = None
    #: The prompt's tokens, where an upstream has counted a part of it.
    prompt_tokens: int | None = None
    #: The key in `TokenCounts` under which the prompt's exact tokens are remembered, or None.
    count_as: bytes | None = None
    #: Its bodies on their way into a file, if the operator has asked for that.
    recording: Recording | None = None
    #: The greenlet that serves it, once the caller is known.
    serving: Any = None

    @property
    def is_anthropic(self) -> bool:
        """Whether the client speaks Anthropic's API; its SDKs always name the version."""
        return "HTTP_ANTHROPIC_VERSION" in self.environ or self.environ[ROUTE_PATH].startswith(
            _MESSAGES
        )

    @property
    def owner(self) -> str:
        """The id of the client: stored responses belong to it."""
        assert self.client is not None, "check_caller comes first"
        return self.client.id

    @property
    def _payer(self) -> str:
        """Whose places it takes."""
        return self.record.client_id if self.client is None else self.client.payer

    def know(self, client: Client, *, counts: bool = True) -> None:
        """Set the caller, whose limits hold from here on.

        Args:
            counts: the call's upstream requests count against them.
        """
        self.serving = current()
        self.services.in_flight.begin(self)
        self.client = client
        self.record.client, self.record.client_id = client.name, client.id
        self.budget = self.services.budgets.of(client)
        if counts:
            self.record.budget = self.budget

    def read_body(self) -> JsonObject:
        """Admit the call, read its JSON body, and from then on watch whether the client stays.

        Admission comes first: bodies are large, and those of admitted calls are all that is held.

        Raises:
            ApiError: 400, 413 or 503.
        """
        self._enter()
        parsed = body.read_json(self.environ, self.services.settings, take=self._take_bytes)
        self.watch = watch_client(self.environ)
        self._begin_recording(parsed)
        return parsed

    def _begin_recording(self, parsed: JsonObject) -> None:
        """Record the call if the operator has asked for calls of its client."""
        services, client = self.services, self.client
        if client is None:
            return
        path = services.recordings.begin(client.name)
        if path is not None:
            request = {
                "method": self.record.method,
                "path": self.record.path,
                "headers": _told_headers(self.environ),
                "body": recordable(loads(parsed.source)),
            }
            self.recording = Recording(path, services.redact, request)

    def read_form(self) -> Form:
        """As `read_body`, for a multipart body. Raises as `read_body`."""
        self._enter()
        form = body.read_form(self.environ, self.services.settings, take=self._take_bytes)
        self.watch = watch_client(self.environ)
        return form

    def _enter(self) -> None:
        """Admit the call with its body. One that is too large is refused as such."""
        most = self.services.settings.max_body_bytes
        declared = min(int(self.environ.get("CONTENT_LENGTH") or 0), most)
        self.services.admission.enter(self._payer, declared)
        self.admitted, self.body_bytes = True, declared

    def admit(self, *, upload: bool = False) -> None:
        """Admit a call without a JSON body. Harmless when repeated.

        Args:
            upload: its body is passed on as it comes: only what is on its way is held.

        Raises:
            ApiError: 503.
        """
        if not self.admitted:
            held = _UPLOAD_BYTES if upload else 0
            self.services.admission.enter(self._payer, held)
            self.admitted, self.body_bytes = True, held

    def _take_bytes(self, count: int) -> None:
        """Take room for bytes that the request's head did not tell of."""
        self.services.admission.take(count)
        self.body_bytes += count

    @property
    def write_record(self) -> Callable[[], None]:
        """What writes the record, before the last byte of an answer whose head was sent long ago.

        It does not know the call: what has it may be held by the call.
        """
        return partial(self.services.ledger.write, self.record)

    def complete(self) -> None:
        """Write the record of a complete answer: its last event comes next."""
        self.record.outcome = "complete"
        self.services.ledger.write(self.record)

    def close(self) -> None:
        """Free what the call holds, and write its record if that was not done. Harmless when
        repeated.

        Whatever fails on the way, the rest is done.
        """
        if self.closed:
            return
        self.closed = True
        try:
            if self.admitted:
                self.services.admission.leave(self._payer, self.body_bytes)
            if self.watch is not None:
                self.watch.stop()
        finally:
            try:
                if self.relay is not None:
                    self.relay.close()
            finally:
                try:
                    if self.budget is not None and not self.budget.is_closed:
                        self.settle()
                    if self.count_as is not None:
                        self._remember_tokens(self.count_as)
                finally:
                    try:
                        self.services.ledger.write(self.record)
                        self.services.metrics.count(self.record)
                        if self.recording is not None:
                            self._end_recording(self.recording)
                    finally:
                        self.services.in_flight.end(self)

    def settle(self) -> None:
        """Settle the limits of the client by what the call has used. Harmless when repeated."""
        if self.budget is not None:
            money = 0
            if self.budget.limits.money_per_month is not None:
                cost = self.services.ledger.cost_of(self.record)
                money = 0 if cost is None else cost.money_micro
            self.budget.close(self.record.usage, money=money)

    def _end_recording(self, recording: Recording) -> None:
        record = self.record
        facts = {
            "request_id": record.request_id,
            "outcome": record.outcome,
            "error": record.error_code,
            "account": record.account,
            "model": record.upstream_model or record.model,
            "attempts": record.attempts,
            "changed": list(record.changed),
        }
        apart(partial(recording.write, facts))

    def _remember_tokens(self, key: bytes) -> None:
        usage = self.record.usage
        if usage is not None and usage.prompt:
            self.services.token_counts.remember(key, usage.prompt)


def live() -> LiveCall:
    """The call that the current request is."""
    found = _LIVE.get()
    assert found is not None, "no request"
    return found


def begin(services: Services) -> Response | None:
    """Start the record of a request, before anything can fail.

    A preflight of CORS is answered here, without a key: browsers never send one with it.
    """
    environ = asked()
    call = LiveCall(
        record=CallRecord(
            request_id=request_id_of(environ),
            method=environ["REQUEST_METHOD"],
            path=spelt(environ["PATH_INFO"]),
            started_at=services.clock.monotonic(),
        ),
        services=services,
        environ=environ,
    )
    if endpoint := environ[ENDPOINT]:
        call.record.endpoint = endpoint
    # The server closes it, too, if nothing else did (`server.free_call`).
    environ[CALL] = call
    _LIVE.set(call)
    if call.record.method != "OPTIONS":
        return None
    call.record.quiet = True
    return Response(status=204)


def request_id_of(environ: Mapping[str, Any]) -> str:
    """The caller's own `X-Request-Id` if it is fit for logs and headers, else a new one."""
    offered: str = environ.get("HTTP_X_REQUEST_ID", "")
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered
    return "req_" + os.urandom(16).hex()


def check_caller(*, admin: bool = False) -> None:
    """Check the caller's key; for blueprints that are not open to everybody.

    Args:
        admin: whether it must be an admin's.

    Raises:
        ApiError: 401 or 403; 503 while the server stops.
    """
    call = live()
    guard = call.services.guard
    try:
        client = guard.require_admin(call.environ) if admin else guard.identify(call.environ)
    except ApiError:
        call.record.address = guard.client_address(call.environ)
        if (holder := guard.holder(call.environ)) is not None:
            call.record.client, call.record.client_id = holder.name, holder.id
        raise
    call.know(client, counts=call.record.method == "POST")
    if call.services.admission.draining:
        raise connections.stopping()


def refuse_pages() -> None:
    """Refuse web pages on routes that need no key; for their blueprints.

    Raises:
        ApiError: 403.
    """
    call = live()
    call.services.guard.refuse_pages(call.environ)


def finish_response(response: Response) -> Response:
    """Add the headers that every answer has, and end the call with the stream's end."""
    call = live()
    record = call.record
    headers, guard = response.headers, call.services.guard
    if guard.origin_matters or "HTTP_ORIGIN" in call.environ:
        cors.allow(headers, guard, call.environ)
    more = [("x-request-id", record.request_id)]
    is_anthropic = call.is_anthropic
    if is_anthropic:
        more.append(("request-id", record.request_id))
    if record.account:
        more.append(("x-qwen-proxy-account", record.account))
        more.append(("x-qwen-proxy-attempts", str(record.attempts)))
    if record.changed:
        more.append(("x-qwen-proxy-changed", changes.header(record.changed)))
    if record.cache:
        more.append(("x-qwen-proxy-cache", record.cache))
    if record.upstream_request_id:
        more.append(("x-upstream-request-id", record.upstream_request_id))
    if call.budget is not None:
        if call.relay is None:
            call.settle()  # the answer is complete: what the headers tell is exact
        more += call.budget.headers(anthropic=is_anthropic, now=call.services.clock.now())
    elapsed_s = call.services.clock.monotonic() - record.started_at
    more.append(("openai-processing-ms", str(round(elapsed_s * 1000))))
    if record.account:
        more.append(("server-timing", server_timing(record, elapsed_s)))
    add_headers(headers, more)
    record.status = response.status_code
    if body.READ not in call.environ and has_body(call.environ):
        leave_unread(call.environ)
    if call.recording is not None:
        _record_answer(call.recording, response)
    if call.relay is not None and not response.is_sequence:
        call.goes_on = True
        # The server calls this when the body was sent or its client is gone.
        response.call_on_close(call.close)
    return response


def _record_answer(recording: Recording, response: Response) -> None:
    recording.begin_answer(response.status_code, dict(response.headers))
    if isinstance(response.response, list):
        recording.keep(response.response)
    else:
        response.response = recording.passing(response.response)  # type: ignore[arg-type]  # bytes


def _told_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """A request's headers but for those that hold secrets, by their names in HTTP."""
    return {
        name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_") and name not in _SECRET_HEADERS
    }


def has_body(environ: Mapping[str, Any]) -> bool:
    """Whether a request says that it has a body."""
    length = environ.get("CONTENT_LENGTH") or "0"
    return length != "0" or "HTTP_TRANSFER_ENCODING" in environ


def leave_unread(environ: Mapping[str, Any]) -> None:
    """Have the connection closed after the answer, because its next bytes are a body that nobody
    asked for: gunicorn would read it to its end, whatever its size."""
    leave = getattr(environ.get("gunicorn.socket"), "leave_unread", None)
    if leave is not None:
        leave()


def server_timing(record: CallRecord, elapsed_s: float) -> str:
    """The stages of a call so far (W3C Server Timing): `queue;dur=0.0, connect;dur=2.1, …`.

    Milliseconds; `first` is from the call's arrival to the upstream's first event.
    """
    first = ""
    if record.first_byte_at is not None:
        first = f", first;dur={(record.first_byte_at - record.started_at) * 1000:.1f}"
    return (
        f"queue;dur={record.queued_s * 1000:.1f}, connect;dur={record.connect_s * 1000:.1f}"
        f"{first}, total;dur={elapsed_s * 1000:.1f}"
    )


def end(error: BaseException | None) -> None:
    """End the call with its request, unless a stream goes on beyond it."""
    call = _LIVE.get()
    if call is None:
        return
    _LIVE.set(None)
    if error is not None:
        call.record.fail(error)
    if not call.goes_on or error is not None:
        call.close()
