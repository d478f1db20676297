"""POST /v1/audio/transcriptions: the text of speech, at once or, with its times, by a task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.body import is_form
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.api.late_answers import Carried, error_event
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError
from qwen_wsgi.greenlets import apart
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.answer_text import check_values
from qwen_wsgi.protocol.json_object import MOST_SLOWLY, encoded, is_long
from qwen_wsgi.protocol.transcription import answer as answers
from qwen_wsgi.protocol.transcription import times
from qwen_wsgi.protocol.transcription.answer import Transcript
from qwen_wsgi.protocol.transcription.models import Road, asr_model
from qwen_wsgi.protocol.transcription.request import (
    WHY_FILES,
    TranscriptionRequest,
    direct_call,
    file_call,
    model_for_files,
    parse_request,
)
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.native_stream import NativeStream
from qwen_wsgi.upstream.routing.accounts import base_url_of
from qwen_wsgi.upstream.routing.router import Plan, Route
from qwen_wsgi.upstream.tasks.tasks import TaskState, task_id_of
from qwen_wsgi.upstream.tasks.uploads import RESOLVE

blueprint = Blueprint("transcriptions", __name__)
blueprint.before_request(lifecycle.check_caller)

#: How the upstream says that the sound is too long for a request.
_TOO_LONG: Final = re.compile(r"AUDIO_DURATION_TOO_LONG|audio is too long", re.IGNORECASE)
_PLAIN: Final = "text/plain; charset=utf-8"
#: A transcript that was made, and paid for, is fetched so often where its connection fails.
_FETCHES: Final = 3


@blueprint.post("/v1/audio/transcriptions")
def create() -> Response:
    """Transcribe a file of a form."""
    call = lifecycle.live()
    request = _request(call)
    call.record.model, call.record.stream = request.model, request.stream
    plan = _plan(call, request.model)
    if _road(plan) is Road.FILE:
        return _by_file(call, request, plan, ())
    if request.wants_times or request.is_long:
        return _moved(call, request)
    try:
        return _directly(call, request, plan)
    except UpstreamError as error:
        if not _TOO_LONG.search(f"{error.code} {error.message}"):
            raise
    call.relay = None  # of a stream that never began
    return _moved(call, request)


@blueprint.post("/v1/audio/translations")
def translate() -> Response:
    """Refuse: no model of Qwen answers with an English translation of speech."""
    raise ApiError(
        "No model of Qwen translates speech here. Use POST /v1/audio/transcriptions, and have the "
        "text translated by POST /v1/chat/completions.",
        status=400,
        type="invalid_request_error",
        code="unsupported_endpoint",
    )


def _request(call: LiveCall) -> TranscriptionRequest:
    if not is_form(call.environ):
        raise BadRequest("The request must be multipart/form-data with a field 'file'.")
    form = call.read_form()
    files = form.files.get("file")
    # Not `read`, which would copy it.
    sound = files[0].stream.getvalue() if files else None  # type: ignore[attr-defined]  # a BytesIO
    return parse_request(form.values, sound)


def _plan(call: LiveCall, model: str) -> Plan:
    """The accounts that have the model, by one road.

    Raises:
        ApiError: none has.
    """
    plan = call.services.router.plan(
        model,
        permit=generation.permit_of(call),
        capability=Capability.TRANSCRIPTION,
    )
    return plan.alike(asr_model)


def _road(plan: Plan) -> Road:
    return asr_model(plan.routes[0].model).road


# --- at once -------------------------------------------------------------------------------------


def _directly(call: LiveCall, request: TranscriptionRequest, plan: Plan) -> Response:
    """Send the sound in the request.

    Raises:
        ApiError: no account answered.
    """
    strict, road = call.services.settings.strict, _road(plan)

    def requests(route: Route) -> UnaryRequests:
        native = direct_call(request, model=route.model, stream=request.stream, strict=strict)
        return UnaryRequests([native.body], native.changed)

    unary = UnaryCall(
        road.value,
        generation.forwarded_headers(call.environ),
        call.record,
        requests,
        at_origin=road is not Road.CHAT,
        once=True,
    )
    if request.stream:
        # A model of chat says when it is done; what the others' last event is, no page tells.
        heard = _Heard(call, request, says_end=road is Road.CHAT)
        carried = Carried(
            heard.events(),
            call.record,
            heard.close,
            last_words=error_event,
            write_record=call.write_record,
        )
        call.relay = carried
        heard.begin(unary, plan)
        return http.event_stream(carried)
    transcript = _transcript(call)
    answer = call.services.executor.unary(unary, plan)
    assert answer is not None  # no cause is taken for a missing path
    transcript.see(answer.answers[0].value)
    _note(call, request, transcript.usage, transcript.seconds)
    return _whole(request, transcript.text, transcript.usage)


class _Heard:
    """The events of one transcript, as they come."""

    def __init__(self, call: LiveCall, request: TranscriptionRequest, *, says_end: bool) -> None:
        """
        Args:
            says_end: the upstream's last event says that it is the last.
        """
        self._call = call
        self._request = request
        self._says_end = says_end
        self._stream: NativeStream | None = None

    def begin(self, unary: UnaryCall, plan: Plan) -> None:
        """Have the first event, so that a refusal has its own status.

        Raises:
            ApiError: no account answered.
        """
        _, self._stream = self._call.services.executor.native_stream(unary, plan)

    def events(self) -> Iterator[bytes]:
        """OpenAI's events.

        Raises:
            ApiError: the upstream failed.
        """
        call, transcript = self._call, _transcript(self._call)
        assert self._stream is not None
        for event in self._stream:
            if piece := transcript.see(event):
                yield answers.delta_event(piece)
        if self._says_end and not transcript.finished:
            raise connection_error("broken", "The upstream's answer ended before its end.")
        _note(call, self._request, transcript.usage, transcript.seconds)
        call.complete()
        yield answers.done_event(transcript.text, transcript.usage)

    def close(self) -> None:
        """Stop the upstream. Harmless when repeated."""
        if self._stream is not None:
            self._stream.close()


def _transcript(call: LiveCall) -> Transcript:
    return Transcript(most_characters=call.services.settings.max_answer_bytes)


def _note(
    call: LiveCall,
    request: TranscriptionRequest,
    usage: Mapping[str, Any] | None,
    seconds: float | None,
) -> None:
    """Write what was transcribed into the record: tokens and seconds as the upstream counted them,
    else the seconds that the file's head tells."""
    known = call.record.usage
    if usage and usage["type"] == "tokens" and (known is None or known.prompt is None):
        counts = (usage[name] for name in ("input_tokens", "output_tokens", "total_tokens"))
        call.record.usage = Usage(*counts)
    seconds = request.seconds if seconds is None else seconds
    if seconds is not None:
        call.record.units = (("seconds", round(seconds, 3)),)


# --- by a task -----------------------------------------------------------------------------------


def _moved(call: LiveCall, request: TranscriptionRequest) -> Response:
    """Ask the model for files instead of the named one.

    Raises:
        ApiError: as `_by_file`; or no account has it, which is said with why it was asked.
    """
    model, changed = model_for_files(strict=call.services.settings.strict)
    try:
        return _by_file(call, request, _plan(call, model), changed)
    except ApiError as error:
        if error.code == "model_not_found":  # the client did not name it
            error.message = f"{WHY_FILES} So `{model}` was asked. {error.message}"
        raise


def _by_file(
    call: LiveCall, request: TranscriptionRequest, plan: Plan, changed: tuple[str, ...]
) -> Response:
    """Store the file for the model, begin a task, wait for it, and fetch the transcript.

    Nothing is sent before the end, so that a failure has its own status.

    Raises:
        ApiError: no account answered, or the task failed.
    """
    route, id = _begun(call, request, plan, changed)
    try:
        state = _ended(call, route, id)
        data = _fetched(call, answers.url_of_result(state.output), route)
        usage = answers.usage_of(state.answer.get("usage"))
        seconds = answers.seconds_of(state.answer.get("usage"))
        _note(call, request, usage, seconds)
        if request.format == "verbose_json" and seconds is not None:
            usage = {"type": "duration", "seconds": seconds}  # the only form that OpenAI's has
        length = seconds if request.seconds is None else request.seconds
        render = partial(_rendered, data, request, usage, length)
        return (apart(render) if is_long(data) else render())()
    except ApiError as error:
        error.should_retry = False  # again, it would be paid for again
        raise


def _begun(
    call: LiveCall, request: TranscriptionRequest, plan: Plan, changed: tuple[str, ...]
) -> tuple[Route, str]:
    """Store the file, and begin a task for it: the account, and the task's id.

    Raises:
        ApiError: no account has begun it.
    """
    services, kind = call.services, request.kind
    strict = services.settings.strict
    if strict:  # refused before the file is stored
        file_call(request, "", model=plan.routes[0].model, strict=True)
    stored: dict[tuple[str, str], str] = {}  # an account that is asked twice has it already

    def requests(route: Route) -> UnaryRequests:
        key = (route.account.name, route.model)
        if key not in stored:
            stored[key] = services.uploads.put(
                route.account, route.model, f"sound.{kind.name}", kind.content_type, request.data
            )
        native = file_call(request, stored[key], model=route.model, strict=strict)
        return UnaryRequests([native.body], (*changed, *native.changed))

    headers = {
        **generation.forwarded_headers(call.environ),
        **RESOLVE,
        "X-DashScope-Async": "enable",
    }
    unary = UnaryCall(Road.FILE.value, headers, call.record, requests, at_origin=True, once=True)
    answer = services.executor.unary(unary, plan)
    assert answer is not None  # no cause is taken for a missing path
    return answer.route, task_id_of(answer.answers[0].value)


def _ended(call: LiveCall, route: Route, id: str) -> TaskState:
    """Wait until a task has succeeded.

    Raises:
        ApiError: it failed, or is not done in time.
    """
    services = call.services
    within_s = services.settings.first_byte_timeout_s
    look = services.looks.look
    return services.tasks.wait(route.account, id, within_s=within_s, look=look)


def _fetched(call: LiveCall, url: str, route: Route) -> bytes:
    """Fetch the transcript that a task made.

    Raises:
        ApiError: it may not be fetched, is too large, or does not come.
    """
    services = call.services
    most = services.settings.max_answer_bytes
    for left in reversed(range(_FETCHES)):
        try:
            found = services.downloads.open(url, base_url_of(route.account), max_bytes=most)
            data = found.read()
            check_values(data, limit=most)
            return data
        except UpstreamError as error:
            if error.failure is None or not left:  # else its connection failed
                raise
    raise AssertionError("the last one raises")


def _rendered(
    data: bytes,
    request: TranscriptionRequest,
    usage: Mapping[str, Any] | None,
    seconds: float | None,
) -> Callable[[], Response]:
    """Read a transcript and render it as the client wants it; what makes the answer of it.

    Pure: hours of sound have a hundred thousand words.

    Raises:
        UpstreamError: it is no transcript.
    """
    document = json_access.read(data, most_slowly=MOST_SLOWLY)
    if not isinstance(document, dict):
        raise UpstreamError("The upstream's transcript is no JSON.", code="upstream_bad_answer")
    timed = times.read(document)
    if request.format == "verbose_json":
        words, segments = request.words, request.segments
        value = times.verbose(timed, seconds=seconds, usage=usage, words=words, segments=segments)
        return partial(http.json_bytes, encoded(value))
    if request.format in ("srt", "vtt"):
        render = times.srt if request.format == "srt" else times.vtt
        return partial(_text, render(timed.segments))
    if not request.stream:
        return partial(_whole, request, timed.text, usage)
    pieces = [answers.delta_event(timed.text)] if timed.text else []
    return partial(http.event_stream, [*pieces, answers.done_event(timed.text, usage)])


# --- answering -----------------------------------------------------------------------------------


def _whole(request: TranscriptionRequest, text: str, usage: Mapping[str, Any] | None) -> Response:
    if request.format == "text":
        return _text(text + "\n")
    return http.json_value(answers.json_answer(text, usage))


def _text(text: str) -> Response:
    return FinishedResponse(text.encode(errors="replace"), content_type=_PLAIN)
