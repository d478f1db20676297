"""POST /v1/images/generations and /v1/images/edits: pictures by Qwen's native API."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.media.members import read_members
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.errors import AnswerTooLarge, ApiError
from qwen_wsgi.protocol.images import answer as answers
from qwen_wsgi.protocol.images.models import Road, image_model
from qwen_wsgi.protocol.images.request import ImageRequest, native_calls, parse_request
from qwen_wsgi.upstream.executor import UnaryAnswer, UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.accounts import base_url_of
from qwen_wsgi.upstream.routing.router import Plan, Route
from qwen_wsgi.upstream.tasks.tasks import task_id_of

blueprint = Blueprint("images", __name__)
blueprint.before_request(lifecycle.check_caller)

#: A picture of the largest size that a model makes, as PNG, is below.
_PICTURE_BYTES: Final = 25 * 1024 * 1024


@blueprint.post("/v1/images/generations")
def generate() -> Response:
    """Make pictures; with pictures of the client as well, as Qwen's own API has it."""
    return _create(edit=False)


@blueprint.post("/v1/images/edits")
def edit() -> Response:
    """Make pictures from the client's pictures, which come as a form or in JSON."""
    return _create(edit=True)


@blueprint.post("/v1/images/variations")
def vary() -> Response:
    """Refuse: no model of Qwen varies a picture without a prompt."""
    raise ApiError(
        "No model of Qwen makes variations without a prompt. Use POST /v1/images/edits, and say in "
        "the prompt what may differ.",
        status=400,
        type="invalid_request_error",
        code="unsupported_endpoint",
    )


def _create(*, edit: bool) -> Response:
    call = lifecycle.live()
    request = _request(call, edit=edit)
    call.record.model = request.model
    plan = call.services.router.plan(
        request.model,
        pinned=generation.pinned_account(call.environ),
        capability=Capability.IMAGE_EDIT if request.pictures else Capability.IMAGE,
    )
    answer = _ask(call, request, plan)
    found = [each.value for each in answer.answers]
    made = [picture for value in found for picture in answers.pictures_of(value)]
    if not made:
        raise answers.failure_of(found)
    call.record.units = (("pictures", len(made)),)
    if len(made) < request.count:
        call.record.changed += (f"n:{len(made)}-of-{request.count}",)
    pictures: list[bytes] = []
    if request.base64:
        pictures = _pictures(call, answer.route, made)
    response = answers.images_response(
        [_entry(each, as_base64=request.base64) for each in made],
        found,
        created=int(call.services.clock.now()),
    )
    return http.json_pieces(answers.with_pictures(response, pictures))


def _request(call: LiveCall, *, edit: bool) -> ImageRequest:
    return parse_request(*read_members(call), edit=edit)


# --- asking --------------------------------------------------------------------------------------


def _ask(call: LiveCall, request: ImageRequest, plan: Plan) -> UnaryAnswer:
    """The native answers; those of tasks are their last states.

    Raises:
        ApiError: no account answered.
    """
    road = image_model(plan.routes[0].model).road
    headers = generation.forwarded_headers(call.environ)
    if road is not Road.SYNC:
        headers["X-DashScope-Async"] = "enable"
    if any(url.startswith("oss://") for url in request.pictures):
        headers["X-DashScope-OssResourceResolve"] = "enable"
    strict = call.services.settings.strict

    def requests(route: Route) -> UnaryRequests:
        native = native_calls(request, model=route.model, strict=strict)
        return UnaryRequests(native.bodies, native.changed)

    unary = UnaryCall(
        road.value, headers, call.record, requests, at_origin=True, once=True, several=True
    )
    answer = call.services.executor.unary(unary, plan.alike(lambda model: image_model(model).road))
    assert answer is not None  # no cause is taken for a missing path
    return answer if road is Road.SYNC else _ended(call, answer)


def _ended(call: LiveCall, answer: UnaryAnswer) -> UnaryAnswer:
    """Wait for the tasks that were begun."""
    account = answer.route.account
    wait = partial(
        call.services.tasks.wait, account, within_s=call.services.settings.first_byte_timeout_s
    )
    ended, failed = [], []
    for each in answer.answers:
        try:
            state = wait(task_id_of(each.value))
        except ApiError as error:
            failed.append(error)
        else:
            ended.append(each._replace(value=dict(state.answer)))
    if not ended:
        raise failed[0]
    return answer._replace(answers=tuple(ended))


# --- answering -----------------------------------------------------------------------------------


def _entry(picture: answers.Made, *, as_base64: bool) -> dict[str, Any]:
    """The entry of `data`: of a picture itself, which is put in later, or of its URL."""
    entry = {"b64_json": ""} if as_base64 else {"url": picture.url}
    if picture.revised_prompt:
        entry["revised_prompt"] = picture.revised_prompt
    return entry


def _pictures(call: LiveCall, route: Route, made: list[answers.Made]) -> list[bytes]:
    """The pictures themselves, in base64."""
    left = call.services.settings.max_answer_bytes
    pictures = []
    for picture in made:
        download = call.services.downloads.open(
            picture.url, base_url_of(route.account), max_bytes=min(_PICTURE_BYTES, left)
        )
        pictures.append(base64.b64encode(download.read()))
        left -= len(pictures[-1])
        if left <= 0:
            raise AnswerTooLarge(
                "is larger than the limit for all pictures together (QWEN_PROXY_MAX_ANSWER on "
                "the server); ask for URLs"
            )
    return pictures
