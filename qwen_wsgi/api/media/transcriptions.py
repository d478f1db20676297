"""POST /v1/audio/transcriptions: the text of speech, at once or, with its times, by a task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.body import is_form
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.api.late_answers import Carried
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.transcription import answer as answers
from qwen_wsgi.protocol.transcription import times
from qwen_wsgi.protocol.transcription.answer import Transcript
from qwen_wsgi.protocol.transcription.models import Road, asr_model
from qwen_wsgi.protocol.transcription.request import (
    TranscriptionRequest,
    direct_call,
    file_call,
    model_for_files,
    parse_request,
)
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.native_stream import NativeStream
from qwen_wsgi.upstream.routing.router import Plan, Route
from qwen_wsgi.upstream.tasks.tasks import TaskState, task_id_of
from qwen_wsgi.upstream.tasks.uploads import RESOLVE

blueprint = Blueprint("transcriptions", __name__)
blueprint.before_request(lifecycle.check_caller)

#: How the upstream says that the sound is too long for a request.
_TOO_LONG: Final = re.compile(r"AUDIO_DURATION_TOO_LONG|audio is too long", re.IGNORECASE)
_PLAIN: Final = "text/plain; charset=utf-8"


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
    return parse_request(form.values, files[0].stream.read() if files else None)


def _plan(call: LiveCall, model: str) -> Plan:
    """The accounts that have the model, by one road.

    Raises:
        ApiError: none has.
    """
    plan = call.services.router.plan(
        model,
        pinned=generation.pinned_account(call.environ),
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
    transcript = _transcript(call)
    if request.stream:
        _, stream = call.services.executor.native_stream(unary, plan)
        # A model of chat says when it is done; what the others' last event is, no page tells.
        return _streamed(call, stream, transcript, says_end=road is Road.CHAT)
    answer = call.services.executor.unary(unary, plan)
    assert answer is not None  # no cause is taken for a missing path
    transcript.see(answer.answers[0].value)
    return _whole(request, transcript.text, transcript.usage)


def _transcript(call: LiveCall) -> Transcript:
    return Transcript(most_characters=call.services.settings.max_answer_bytes)


def _streamed(
    call: LiveCall, stream: NativeStream, transcript: Transcript, *, says_end: bool
) -> Response:
    def events() -> Iterator[bytes]:
        for event in stream:
            if piece := transcript.see(event):
                yield answers.delta_event(piece)
            call.record.usage = parse_usage(event.get("usage")) or call.record.usage
        if says_end and not transcript.finished:
            raise connection_error("broken", "The upstream's answer ended before its end.")
        yield answers.done_event(transcript.text, transcript.usage)

    carried = Carried(events(), call.record, stream.close, last_words=_error_event)
    call.relay = carried
    return http.event_stream(carried)


def _error_event(error: ApiError) -> bytes:
    return b"data: " + compact(error.body()).encode() + b"\n\n"


# --- by a task -----------------------------------------------------------------------------------


def _moved(call: LiveCall, request: TranscriptionRequest) -> Response:
    """Ask the model for files instead of the named one."""
    model, changed = model_for_files(strict=call.services.settings.strict)
    return _by_file(call, request, _plan(call, model), changed)


def _by_file(
    call: LiveCall, request: TranscriptionRequest, plan: Plan, changed: tuple[str, ...]
) -> Response:
    """Store the file for the model, begin a task, wait for it, and fetch the transcript.

    Nothing is sent before the end, so that a failure has its own status.

    Raises:
        ApiError: no account answered, or the task failed.
    """
    route, state = _task(call, request, plan, changed)
    document = _document(call, answers.url_of_result(state.output), route)
    timed = times.read(document)
    usage = answers.usage_of(state.answer.get("usage"))
    if request.format == "verbose_json":
        told = usage.get("seconds") if usage else None
        return http.json_value(
            times.verbose(
                timed,
                seconds=told if request.seconds is None else request.seconds,
                usage=usage,
                words=request.words,
                segments=request.segments,
            )
        )
    if request.format in ("srt", "vtt"):
        render = times.srt if request.format == "srt" else times.vtt
        return _text(render(timed.segments))
    if not request.stream:
        return _whole(request, timed.text, usage)
    pieces = [answers.delta_event(timed.text)] if timed.text else []
    return http.event_stream([*pieces, answers.done_event(timed.text, usage)])


def _task(
    call: LiveCall, request: TranscriptionRequest, plan: Plan, changed: tuple[str, ...]
) -> tuple[Route, TaskState]:
    """Begin a task for the file, and wait until it has succeeded."""
    services, kind = call.services, request.kind
    strict = services.settings.strict
    if strict:  # refused before the file is stored
        file_call(request, "", model=plan.routes[0].model, strict=True)

    def requests(route: Route) -> UnaryRequests:
        url = services.uploads.put(
            route.account, route.model, f"sound.{kind.name}", kind.content_type, request.data
        )
        native = file_call(request, url, model=route.model, strict=strict)
        return UnaryRequests([native.body], (*changed, *native.changed))

    headers = {
        **generation.forwarded_headers(call.environ),
        **RESOLVE,
        "X-DashScope-Async": "enable",
    }
    unary = UnaryCall(Road.FILE.value, headers, call.record, requests, at_origin=True, once=True)
    answer = services.executor.unary(unary, plan)
    assert answer is not None  # no cause is taken for a missing path
    state = services.tasks.wait(
        answer.route.account,
        task_id_of(answer.answers[0].value),
        within_s=services.settings.first_byte_timeout_s,
    )
    return answer.route, state


def _document(call: LiveCall, url: str, route: Route) -> Mapping[str, Any]:
    """Fetch the transcript that a task made."""
    services = call.services
    data = services.downloads.open(
        url, route.account.base_url or "", max_bytes=services.settings.max_answer_bytes
    ).read()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UpstreamError("The upstream's transcript is no JSON.", code="upstream_bad_answer")
    return value


# --- answering -----------------------------------------------------------------------------------


def _whole(request: TranscriptionRequest, text: str, usage: Mapping[str, Any] | None) -> Response:
    if request.format == "text":
        return _text(text + "\n")
    return http.json_value(answers.json_answer(text, usage))


def _text(text: str) -> Response:
    return FinishedResponse(text.encode(errors="replace"), content_type=_PLAIN)
