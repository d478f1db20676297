"""POST /v1/audio/speech: text spoken by Qwen's models, sent as it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.late_answers import Carried, error_event
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.protocol.speech import answer
from qwen_wsgi.protocol.speech.models import speech_model
from qwen_wsgi.protocol.speech.request import (
    CONTENT_TYPES,
    NativeSpeech,
    SpeechRequest,
    native_speech,
    parse_request,
)
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.native_stream import NativeStream
from qwen_wsgi.upstream.routing.accounts import base_url_of
from qwen_wsgi.upstream.routing.router import Plan, Route

blueprint = Blueprint("speech", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Of a sound that is fetched because a model sent none in its stream.
_SOUND_BYTES: Final = 512 * 1024 * 1024


@blueprint.post("/v1/audio/speech")
def create() -> Response:
    """Speak a text; the answer is the sound, or events with pieces of it."""
    call = lifecycle.live()
    request = parse_request(call.read_body())
    call.record.model, call.record.stream = request.model, True
    plan = call.services.router.plan(
        request.model,
        permit=generation.permit_of(call),
        capability=Capability.SPEECH,
    )
    speech = _Speech(call, request, plan)
    carried = Carried(
        _events(call, speech) if request.events else speech.sound(),
        call.record,
        speech.close,
        last_words=error_event if request.events else lambda error: b"",
        write_record=call.write_record,
    )
    call.relay = carried
    speech.begin()
    if request.events:
        return http.event_stream(carried)
    return http.carried(carried, CONTENT_TYPES[speech.native.format])


class _Speech:
    """One text that is spoken, part by part, by one account."""

    def __init__(self, call: LiveCall, request: SpeechRequest, plan: Plan) -> None:
        self.spoken = answer.Spoken()
        self.native: NativeSpeech
        self._call = call
        self._request = request
        self._plan = plan.alike(lambda model: speech_model(model).path)
        self._stream: NativeStream | None = None
        self._free: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Have the first part's first event, so that a refusal has its own status.

        Raises:
            ApiError: no account answered.
        """
        route = self._open(0)
        # The others are spoken by the same account, in the same voice.
        self._plan = replace(self._plan, routes=(route,))

    def sound(self) -> Iterator[bytes]:
        """The sound, as it comes.

        Raises:
            ApiError: the upstream failed.
        """
        native = self.native
        if native.format == "wav":
            yield answer.wav_head(native.rate)
        for part in range(len(native.bodies)):
            if part:
                self._open(part)
            yield from self._part()

    def close(self) -> None:
        """Stop the upstream. Harmless when repeated."""
        stream, self._stream = self._stream, None
        free, self._free = self._free, lambda: None
        try:
            free()
        finally:
            if stream is not None:
                stream.close()

    def _open(self, part: int) -> Route:
        settings = self._call.services.settings

        def requests(route: Route) -> UnaryRequests:
            self.native = native_speech(
                self._request,
                model=route.model,
                voices=dict(settings.voices),
                strict=settings.strict,
            )
            return UnaryRequests([self.native.bodies[part]], self.native.changed)

        unary = UnaryCall(
            speech_model(self._plan.routes[0].model).path,
            generation.forwarded_headers(self._call.environ),
            self._call.record,
            requests,
            at_origin=True,
            once=True,
        )
        self.close()
        route, self._stream = self._call.services.executor.native_stream(unary, self._plan)
        self._base_url = base_url_of(route.account)
        return route

    def _part(self) -> Iterator[bytes]:
        stream = self._stream
        assert stream is not None
        url, any_sound = "", False
        for event in stream:
            self.spoken.see(event)
            url = answer.url_of(event) or url
            if sound := answer.sound_of(event):
                if self.native.samples and not any_sound:
                    sound = answer.samples_of(sound)
                any_sound = True
                yield sound
        self.close()
        if not any_sound:
            yield from self._fetched(url)
        self.spoken.end_part()
        self._call.record.units = (("characters", self.spoken.characters),)

    def _fetched(self, url: str) -> Iterator[bytes]:
        """The sound of a model that only names its URL."""
        if not url:
            raise connection_error("empty", "The upstream ended its answer without any sound.")
        download = self._call.services.downloads.open(url, self._base_url, max_bytes=_SOUND_BYTES)
        self._free = download.close
        first = True
        for piece in download.pieces():
            yield answer.samples_of(piece) if first and self.native.samples else piece
            first = False
        self.close()


def _events(call: LiveCall, speech: _Speech) -> Iterator[bytes]:
    for sound in speech.sound():
        yield answer.delta_event(sound)
    call.complete()
    yield answer.done_event(speech.spoken)
