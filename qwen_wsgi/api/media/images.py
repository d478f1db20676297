"""POST /v1/images/generations and /v1/images/edits: pictures by Qwen's native API."""

from __future__ import annotations

import base64
from typing import Any

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.media.members import read_members
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.errors import AnswerTooLarge, ApiError
from qwen_wsgi.protocol.images import answer as answers
from qwen_wsgi.protocol.images.request import ImageRequest, parse_request
from qwen_wsgi.upstream.routing.router import Route

blueprint = Blueprint("images", __name__)
blueprint.before_request(lifecycle.check_caller)


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
    answer = call.services.pictures.make(
        request,
        plan,
        generation.forwarded_headers(call.environ),
        call.record,
        strict=call.services.settings.strict,
    )
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
        content = call.services.pictures.fetch(picture.url, route, max_bytes=left)
        pictures.append(base64.b64encode(content))
        left -= len(pictures[-1])
        if left <= 0:
            raise AnswerTooLarge(
                "is larger than the limit for all pictures together (QWEN_PROXY_MAX_ANSWER on "
                "the server); ask for URLs"
            )
    return pictures
