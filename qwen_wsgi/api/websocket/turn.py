"""One response that is created over a WebSocket: the same call as a POST, told in messages."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from qwen_wsgi.access import connections
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api.dialects import responses
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.errors import ApiError, CallCancelled, ClientGone, forget_frames
from qwen_wsgi.greenlets import apart
from qwen_wsgi.protocol import responses as protocol
from qwen_wsgi.protocol.json_object import LONG_BYTES, JsonObject
from qwen_wsgi.protocol.responses import ResponseEncoder, ResponsesRequest
from qwen_wsgi.protocol.websocket import events
from qwen_wsgi.protocol.websocket.events import ClientEvent
from qwen_wsgi.services import Services
from qwen_wsgi.shortage import fault_error
from qwen_wsgi.state.connection_memory import Conversation, conversation_of

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

log = logging.getLogger(__name__)


class Connection(Protocol):
    """What a turn needs of its connection; `Session` is one."""

    services: Services
    environ: WSGIEnvironment

    def new_record(self) -> CallRecord: ...
    def send(self, messages: Iterable[bytes]) -> None: ...
    def refuse(self, error: ApiError, stream_id: str | None, request_id: str = "") -> None: ...
    def recall(self, id: str) -> Conversation | None: ...
    def keep(self, stream_id: str | None, id: str, conversation: Conversation) -> None: ...


class Turn:
    """Creates one response.

    A refusal becomes an `error` event. So does a failure of the upstream before the first event
    that is about the request; one that may pass, or that the client can mend by a shorter
    conversation, becomes a failed response, because agents try again after that.
    """

    def __init__(self, connection: Connection, event: ClientEvent) -> None:
        self.connection = connection
        self.stream_id = event.stream_id
        self._event = event
        self.call = LiveCall(
            record=connection.new_record(),
            services=connection.services,
            environ=connection.environ,
        )

    def run(self) -> None:
        """Create the response, and tell whatever comes of it. Raises nothing."""
        record = self.call.record
        try:
            event = self._event
            make = partial(events.request_of, event)
            body = apart(make) if event.body.is_long else make()
            self._create(body, generates=events.generates(event.body))
        except ApiError as error:
            record.fail(error)
            self._refuse(error)
            forget_frames(error)
        except ClientGone as gone:
            record.fail(gone)
        except CallCancelled as cancelled:
            record.fail(cancelled)
            self._refuse(cancelled.error)
        except Exception as fault:  # the outermost frame that can tell the client
            failure = fault_error(fault, record.request_id)
            record.fail(failure)
            self._refuse(failure)
        except BaseException:  # the worker is stopping, and its time for open responses is over
            refusal = connections.stopping()
            record.fail(refusal)
            record.outcome = "cut_by_stop"
            self._refuse(refusal)
        finally:
            self.call.close()

    def _refuse(self, error: ApiError) -> None:
        self.call.write_record()
        with suppress(ClientGone):
            self.connection.refuse(error, self.stream_id, self.call.record.request_id)

    def _create(self, body: JsonObject, *, generates: bool) -> None:
        call = self.call
        self._enter(len(body.source))
        id = responses.new_id()
        before = self._conversation(protocol.previous_of(body).id)
        history = apart(before.items) if before.size >= LONG_BYTES else before.items()
        request, chat = responses.chat_of(call, body, id, history)
        if request.background is not None:
            raise protocol.background.not_here()
        created = int(call.services.clock.now())
        keep = _Keeping(self, request, id, before).put
        try:
            plan = call.services.executor.plan(chat)
            model = request.model or plan.model
            encoder = _MessageEncoder(request, id=id, created=created, model=model, keep=keep)
            if not generates:
                call.record.status = 200
                last = encoder.end()
                call.complete()
                self._send([last])
                return
            # What it returns would be the answer to a POST.
            responses.stream(call, request, chat, plan, encoder)
        except ApiError as error:
            if not _fails_the_response(error):
                raise
            call.record.fail(error)
            forget_frames(error)
            failed = ResponseEncoder(request, id=id, created=created, model=request.model)
            call.write_record()
            self._send([failed.fail(error)])
            return
        call.record.status = 200
        assert call.relay is not None, "it was opened just now"
        self._send(call.relay)

    def _enter(self, body_bytes: int) -> None:
        """Check the client's key, which may not be valid any more, and take a place among the
        calls in flight, with room for the body; `LiveCall.close` gives them back.

        Raises:
            ApiError: 401, 403 or 503.
        """
        call = self.call
        client = call.services.guard.identify(call.environ)
        call.know(client)
        call.services.admission.enter(client.payer, body_bytes)
        call.admitted, call.body_bytes = True, body_bytes

    def _conversation(self, id: str | None) -> Conversation:
        """The conversation up to a response; the empty one for None.

        Raises:
            ResponseMissing: there is none, neither of this connection nor stored.
        """
        if id is None:
            return Conversation()
        call = self.call
        found = self.connection.recall(id)
        return found or conversation_of(call.services.responses.history(call.owner, id))

    def _send(self, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            if messages := events.messages(block, self.stream_id):
                self.connection.send(messages)


class _MessageEncoder(ResponseEncoder):
    """A message cannot be a comment: a keep-alive is always an event."""

    def keep_alive(self, kind: str) -> bytes:
        return super().keep_alive("chunk")


class _Keeping:
    """Keeps the response of a turn: in the connection's memory, and in the store if the client
    wants."""

    def __init__(
        self, turn: Turn, request: ResponsesRequest, id: str, before: Conversation
    ) -> None:
        self._turn = turn
        self._request = request
        self._id = id
        self._before = before

    def put(self, response: dict[str, Any]) -> bool:
        """Keep it; returns whether what its client wanted of the store is done."""
        request, before = self._request, self._before
        stored = request.store and self._store(response)
        items = [*request.input_items, *response["output"]]
        self._turn.connection.keep(
            self._turn.stream_id, self._id, before.plus(items, stored=stored)
        )
        return stored or not request.store

    def _store(self, response: dict[str, Any]) -> bool:
        """Store it; where it continues what is not stored, with all that went before."""
        call, request, before = self._turn.call, self._request, self._before
        put, items = call.services.responses.put, request.input_items
        if before.stored:
            return put(call.owner, response, items, request.previous_response_id)
        return put(call.owner, response, [*before.items(), *items], None)


def _fails_the_response(error: ApiError) -> bool:
    """Whether a failure before the first event is that of the response, not of the request.

    Codex 0.171 gives up upon an `error` event with 400 or 429. A failed response it asks for again
    after a while, or with a shortened conversation.
    """
    return error.status == 429 or error.status >= 500 or error.code == "context_length_exceeded"
