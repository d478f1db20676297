"""One WebSocket from its handshake to its end: reads events, and lets each lane create responses.

One greenlet, gunicorn's, reads all the time, so that pings are answered and a client that leaves is
noticed while responses are created. Each response is created by a `Turn` in a greenlet of its own.
"""

from __future__ import annotations

import itertools
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from qwen_wsgi import greenlets
from qwen_wsgi.access import connections
from qwen_wsgi.access.guard import Client
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.api import body
from qwen_wsgi.api.websocket.channel import Channel
from qwen_wsgi.api.websocket.turn import Turn
from qwen_wsgi.errors import ApiError, BadRequest, ClientGone
from qwen_wsgi.protocol.websocket import events, lanes
from qwen_wsgi.protocol.websocket.events import ClientEvent
from qwen_wsgi.protocol.websocket.frames import (
    GOING_AWAY,
    INTERNAL_ERROR,
    TRY_AGAIN_LATER,
    Close,
    Ping,
    Text,
)
from qwen_wsgi.protocol.websocket.lanes import Lanes
from qwen_wsgi.services import Services
from qwen_wsgi.state.connection_memory import Conversation

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

log = logging.getLogger(__name__)

#: The method of turns in the log: their path is that of a POST.
METHOD: Final = "WS"
_ENDPOINT: Final = "/v1/responses"

_RESTART: Final = "the server is being stopped or restarted"

#: OpenAI's limit for a connection.
LONGEST_S: Final = 3600.0
#: A client that answers no ping for so many intervals is given up.
_UNANSWERED: Final = 4
#: How long the responses that a stop cuts may take to say so; gunicorn gives a second.
_CUT_S: Final = 0.5


class _End(NamedTuple):
    """How a connection is to end once no response is created any more.

    Attributes:
        refusal: for requests that come before that.
        told: the refusal is sent before the close frame, even if no request came.
    """

    close: Close
    refusal: ApiError
    told: bool = False


@dataclass
class _Request:
    """A `response.create` that waits.

    Attributes:
        event: the message as it was read; None after it had to wait, because parsed JSON is large.
    """

    message: bytes
    event: ClientEvent | None


class Session:
    """One connection. `run` serves it; `stop` ends it, from any greenlet.

    Args:
        request_id: of the handshake; the responses' own are made from it.
    """

    def __init__(
        self, services: Services, environ: WSGIEnvironment, client: Client, request_id: str
    ) -> None:
        self.services = services
        self.environ = environ
        self.client = client
        self.request_id = request_id
        self._turns = itertools.count(1)
        self._lanes: Lanes[_Request] = Lanes()
        self._strands: dict[str | None, greenlets.Strand] = {}
        self._latest: dict[str | None, str] = {}
        self._arriving = 0
        self._end: _End | None = None
        self._pinged_at: float | None = None
        self._began_at = self._used_at = services.clock.monotonic()
        self._channel: Channel | None = None
        self._closed = False

    # --- from the handshake to the end ------------------------------------------------------------

    def run(self, sock: socket.socket, answer: bytes) -> None:
        """Answer the handshake, and serve the connection until it ends."""
        channel = self._channel = self._open(sock)
        close: Close | None = None
        try:
            channel.raw(answer)
            close = self._serve(channel)
        except ClientGone:
            pass
        except Exception as fault:  # the outermost frame that knows how to tell the client
            log.error("fault in a WebSocket request_id=%s", self.request_id, exc_info=fault)
            close = Close(INTERNAL_ERROR, "the server failed; its log says why")
        except BaseException:  # gunicorn's, when the time for a stop is over
            self._cut(channel)
            raise
        finally:
            self._break_off(client_gone=True)
            self._free()
        if close is not None:
            channel.close(close)

    def stop(self) -> None:
        """End the connection when its responses are complete; does not wait for that."""
        self._end_soon(_End(Close(GOING_AWAY, _RESTART), connections.stopping()))

    def _open(self, sock: socket.socket) -> Channel:
        settings = self.services.settings
        return Channel(
            sock,
            self.services.clock,
            max_bytes=settings.max_body_bytes,
            tick_s=min(settings.keepalive_interval_s, settings.websocket_idle_s),
        )

    def _cut(self, channel: Channel) -> None:
        """End the responses, which tell their client, and the connection."""
        strands = list(self._strands.values())
        self._break_off(client_gone=False)
        greenlets.Strand.wait_for(strands, _CUT_S)
        channel.close(Close(GOING_AWAY, _RESTART))

    def _break_off(self, *, client_gone: bool) -> None:
        self._drop_waiting()
        for strand in list(self._strands.values()):
            strand.break_off(client_gone=client_gone)

    def _drop_waiting(self) -> list[str | None]:
        """Drop the requests that wait; their lanes."""
        waiting = self._lanes.clear()
        for _, request in waiting:
            self.services.connection_memory.give(len(request.message))
        return [stream_id for stream_id, _ in waiting]

    def _free(self) -> None:
        """Give back what the connection holds besides its responses."""
        self._closed = True
        memory = self.services.connection_memory
        memory.give(self._arriving)
        for id in self._latest.values():
            memory.forget(self, id)
        self.leave()

    def leave(self) -> None:
        """Give the place back; harmless when repeated."""
        self.services.connections.leave(self)

    # --- reading ----------------------------------------------------------------------------------

    def _serve(self, channel: Channel) -> Close:
        """Read until the connection is to end; how."""
        while True:
            if self._end is not None:
                for stream_id in self._drop_waiting():
                    self._refuse_event(self._end.refusal, stream_id)
                if not self._lanes.busy:
                    if self._end.told:
                        self.refuse(self._end.refusal, None)
                    return self._end.close
            ping: Ping | None = None
            for event in channel.receive():
                if isinstance(event, Close):
                    return event
                if isinstance(event, Ping):
                    ping = event
                else:
                    self._arrived(channel.held)
                    self._message(event)
            if ping is not None:
                # Of several the last: RFC 6455, section 5.5.3.
                channel.pong(ping)
            if not self._arrived(channel.held):
                return Close(TRY_AGAIN_LATER, "the server has no room for this message now")
            now = self.services.clock.monotonic()
            if self._is_idle(now):
                return Close(GOING_AWAY, "no response was requested for a while")
            self._look_for_life(channel, now)
            if now - self._began_at >= LONGEST_S:
                self._end_soon(_End(Close(GOING_AWAY, "an hour is over"), _too_old(), told=True))

    def _arrived(self, arriving: int) -> bool:
        """Account for the message that is not complete yet; whether there is room for it."""
        memory, more = self.services.connection_memory, arriving - self._arriving
        if more > 0 and not memory.take(more):
            return False
        if more < 0:
            memory.give(-more)
        self._arriving = arriving
        return True

    def _is_idle(self, now: float) -> bool:
        if self._lanes.busy:
            self._used_at = now
        return now - self._used_at >= self.services.settings.websocket_idle_s

    def _look_for_life(self, channel: Channel, now: float) -> None:
        """Ping a client that was silent for a while.

        Raises:
            ClientGone: it answers no ping, and takes nothing else either.
        """
        interval_s = self.services.settings.keepalive_interval_s
        if self._pinged_at is not None and channel.heard_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is None:
            if now - channel.heard_at >= interval_s:
                self._pinged_at = now
                channel.ping()
        # A client that is sent much may be busy with it, and come to the ping late.
        elif now - max(self._pinged_at, channel.told_at) >= _UNANSWERED * interval_s:
            raise ClientGone("the client answers no ping")

    def _end_soon(self, end: _End) -> None:
        """Create no further responses, and end when none is being created any more."""
        if self._end is None:
            self._end = end
        if self._channel is not None:
            self._channel.wake()

    # --- events -----------------------------------------------------------------------------------

    def _message(self, text: Text) -> None:
        stream_id = None
        try:
            event = self._read(text.data)
            stream_id = event.stream_id
            if event.type == events.CREATE:
                self._create(_Request(text.data, event), stream_id)
            elif event.type == events.STEER:
                self.send([events.steer_failed(event)])
            elif event.type != events.PROCESSED:
                raise events.unknown(event.type)
        except ApiError as error:
            self._refuse_event(error, stream_id)

    def _read(self, message: bytes) -> ClientEvent:
        """Read an event, with the checks of a POST's body.

        Raises:
            ApiError: as `body.parse`; it is not an event that can be read.
        """
        return events.read(body.parse(message, self.services.settings))

    def _refuse_event(self, error: ApiError, stream_id: str | None) -> None:
        """Refuse an event for which no turn is begun; the log has a line of it as of a turn."""
        record = self.new_record()
        record.fail(error)
        self.services.ledger.write(record)
        self.services.metrics.count(record)
        self.refuse(error, stream_id, record.request_id)

    def _create(self, request: _Request, stream_id: str | None) -> None:
        """Queue a request; create its response at once if its lane is free.

        Raises:
            ApiError: it is refused.
        """
        if self._end is not None:
            raise self._end.refusal
        memory, size = self.services.connection_memory, len(request.message)
        if not memory.take(size):
            raise lanes.full("Requests of too many bytes")
        try:
            self._lanes.add(stream_id, request)
        except ApiError:
            memory.give(size)
            raise
        self._start()
        request.event = None

    def _start(self) -> None:
        """Begin the responses whose lanes are free, as long as somebody can be told of them."""
        while self._takes_requests and (ready := self._lanes.next()) is not None:
            stream_id, request = ready
            self.services.connection_memory.give(len(request.message))
            work = partial(self._turn, request.event or self._read(request.message))
            self._strands[stream_id] = greenlets.Strand(work)

    @property
    def _takes_requests(self) -> bool:
        # A turn that could not write ends before the reading greenlet knows that the client left.
        return self._end is None and self._channel is not None and not self._channel.is_broken

    def _turn(self, event: ClientEvent) -> None:
        """Create a response, and then begin the next one of its lane."""
        try:
            Turn(self, event).run()
        finally:
            self._strands.pop(event.stream_id, None)
            self._lanes.done(event.stream_id)
            self._used_at = self.services.clock.monotonic()
            self._start()
            if self._end is not None and self._channel is not None:
                self._channel.wake()

    # --- for turns --------------------------------------------------------------------------------

    def new_record(self) -> CallRecord:
        """The record of the next turn: the same facts as of a POST, with a method of its own."""
        return CallRecord(
            request_id=f"{self.request_id}-{next(self._turns)}",
            method=METHOD,
            path=self.environ["PATH_INFO"],
            endpoint=_ENDPOINT,
            client=self.client.name,
            client_id=self.client.id,
            started_at=self.services.clock.monotonic(),
        )

    def send(self, messages: Iterable[bytes]) -> None:
        """Send messages.

        Raises:
            ClientGone: the connection is closed, or the client takes nothing.
        """
        assert self._channel is not None, "run comes first"
        self._channel.send(messages)

    def refuse(self, error: ApiError, stream_id: str | None, request_id: str = "") -> None:
        """Send the event that refuses a request; raises as `send`."""
        headers = {"x-request-id": request_id or self.request_id}
        self.send([events.error(error, stream_id, headers)])

    def recall(self, id: str) -> Conversation | None:
        """The conversation up to a response of this connection, or None."""
        return self.services.connection_memory.recall(self, id)

    def keep(self, stream_id: str | None, id: str, conversation: Conversation) -> None:
        """Keep the conversation up to the latest response of a lane, for the next one."""
        if self._closed:
            return
        memory = self.services.connection_memory
        before = self._latest.get(stream_id)
        if before is not None:
            memory.forget(self, before)
        self._latest[stream_id] = id
        memory.keep(self, id, conversation)


def _too_old() -> BadRequest:
    """OpenAI's words: Codex and others know the code."""
    return BadRequest(
        "Responses websocket connection limit reached (60 minutes). Create a new websocket "
        "connection to continue.",
        code="websocket_connection_limit_reached",
    )
