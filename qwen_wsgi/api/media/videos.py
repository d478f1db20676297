"""OpenAI's videos: POST /v1/videos and what can be done with one; and the older form that waits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation as dialects
from qwen_wsgi.api.late_answers import LateJson
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.media import content as results
from qwen_wsgi.api.media.members import read_members
from qwen_wsgi.api.media.video_start import Started, start
from qwen_wsgi.api.paging import limit_of, oldest_first, page
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import (
    AccountUnavailable,
    ApiError,
    BadRequest,
    Forbidden,
    NotFound,
    UpstreamError,
    UpstreamTimeout,
)
from qwen_wsgi.greenlets import in_order, watch_client
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.videos import answer as answers
from qwen_wsgi.protocol.videos.ids import VideoRef, read_id
from qwen_wsgi.protocol.videos.request import VideoRequest, parse_request
from qwen_wsgi.state.database.videos import KnownVideo
from qwen_wsgi.upstream.http.download import ResultMissing
from qwen_wsgi.upstream.routing.accounts import base_url_of

blueprint = Blueprint("videos", __name__)
blueprint.before_request(lifecycle.check_caller)

#: A minute in 1080P has about 80 MB.
_VIDEO_BYTES: Final = 512 * 1024 * 1024
#: What videos come as, and how their files are called.
_TYPES: Final = {"video/mp4": "mp4", "video/webm": "webm", "video/quicktime": "mov"}
#: Videos of a list that are looked at anew, and how many at a time.
_LOOKS: Final = 20
_AT_A_TIME: Final = 4
#: When the official SDKs should ask again. Milliseconds.
_POLL_AFTER: Final = "5000"
_ENDS: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELED"})


@blueprint.post("/v1/videos")
def create() -> Response:
    """Begin a video; the answer tells its id."""
    call = lifecycle.live()
    return _told(_begun(call, start(call, read := _request(call)), read))


@blueprint.get("/v1/videos")
def list_videos() -> Response:
    """The client's videos that this box has begun, the latest first unless `order=asc`."""
    call = lifecycle.live()
    after = request.args.get("after")
    found = call.services.videos.page(
        call.owner,
        after=after if after is None or after.isascii() else "",
        limit=limit_of(request.args),
        oldest_first=oldest_first(request.args),
    )
    if found is None:
        raise BadRequest(f"No video has the id '{str(after)[:64]}'.", param="after")
    videos, has_more = found
    return http.json_value(page(_refreshed(call, videos), has_more=has_more))


@blueprint.get("/v1/videos/<id>")
def retrieve(id: str) -> Response:
    """A video, with its status now."""
    call = lifecycle.live()
    return _told(_find(call, id).video())


@blueprint.delete("/v1/videos/<id>")
def delete(id: str) -> Response:
    """Forget a video, and cancel it if it has not begun: `{"id", "object", "deleted": true}`."""
    call = lifecycle.live()
    found = _find(call, id)
    services, ref = call.services, found.ref
    if not found.has_ended and found.account is not None:
        services.tasks.cancel(found.account, ref.task)
        services.looks.forget(found.account, ref.task)
    services.videos.delete(call.owner, id, ref.account, ref.task, ref.model)
    return http.json_value({"id": id, "object": "video.deleted", "deleted": True})


@blueprint.get("/v1/videos/<id>/content")
def content(id: str) -> Response:
    """The video itself, or a part of it (`Range`)."""
    call = lifecycle.live()
    variant = request.args.get("variant", "video")
    if variant != "video":
        raise BadRequest(
            f"Invalid value: '{variant[:32]}'. Qwen's models make no thumbnails and spritesheets; "
            "supported is: 'video'.",
            param="variant",
            code="unsupported_variant",
        )
    found = _find(call, id)
    url = found.url()
    call.admit()
    call.watch = watch_client(call.environ)
    part = results.wanted_part(call.environ)
    base_url = "" if found.account is None else base_url_of(found.account)
    try:
        download = call.services.downloads.open(url, base_url, max_bytes=_VIDEO_BYTES, headers=part)
    except ResultMissing as error:
        if error.upstream_status == 416:
            return results.no_such_part(error.content_range)
        if error.upstream_status in (403, 404):
            raise _expired() from None
        raise
    name = "video-" + hashlib.sha256(id.encode()).hexdigest()[:16]
    return results.content(call, download, part=bool(part), types=_TYPES, name=name)


@blueprint.post("/v1/videos/edits")
@blueprint.post("/v1/videos/extensions")
@blueprint.post("/v1/videos/characters")
@blueprint.post("/v1/videos/<id>/remix")
def change(id: str = "") -> Response:
    """Refuse: no model of Qwen changes a video by its id."""
    raise BadRequest(
        "Qwen's models do not change a video by its id. Those with -r2v in their name, and "
        "wan3.0-video, take videos in 'media': POST /v1/videos with "
        '[{"type": "reference_video", "url": …}].',
        code="unsupported_endpoint",
    )


# --- the older form ------------------------------------------------------------------------------


@blueprint.post("/v1/videos/generations")
def generate() -> Response:
    """Make a video, and wait for it unless `async` is true: `{"id", "created", "status", "model",
    "data": [{"url"}]}`."""
    call = lifecycle.live()
    read = _request(call)
    started = start(call, read)
    if not read.wait:
        made = _begun(call, started, read)
        return http.json_value(answers.generation(made, started.state.answer))
    late = LateJson(
        partial(_finished, call, started),
        settings=call.services.settings,
        record=call.record,
        write_record=call.write_record,
    )
    call.relay = late
    return late.response()


@blueprint.get("/v1/videos/generations/<id>")
def generation(id: str) -> Response:
    """The state of a video in the older form."""
    found = _find(lifecycle.live(), id)
    return http.json_value(answers.generation(found.video(), found.task()))


def _finished(call: LiveCall, started: Started) -> dict[str, Any]:
    """Wait for a video; if nobody waits any more, it is cancelled, as far as it can be.

    Raises:
        ApiError: it failed, or takes too long.
    """
    services = call.services
    try:
        state = services.tasks.wait(
            started.route.account,
            started.ref.task,
            within_s=services.settings.first_byte_timeout_s,
            look=services.looks.look,
        )
    except UpstreamTimeout as error:
        error.message += f" It may go on: GET /v1/videos/generations/{started.id}"
        error.should_retry = False
        raise
    services.videos.update(call.owner, started.id, state.answer)
    made = answers.video(started.id, started.ref, state.answer, now=services.clock.now())
    if made["error"] is not None:
        raise UpstreamError(
            made["error"]["message"], code=made["error"]["code"], should_retry=False
        )
    return answers.generation(made, state.answer)


# --- shared --------------------------------------------------------------------------------------


def _request(call: LiveCall) -> VideoRequest:
    return parse_request(*read_members(call))


def _begun(call: LiveCall, started: Started, read: VideoRequest) -> dict[str, Any]:
    return answers.video(
        started.id,
        started.ref,
        started.state.answer,
        now=call.services.clock.now(),
        prompt=read.prompt,
    )


def _told(video: Mapping[str, Any]) -> Response:
    response = http.json_value(video)
    if video["status"] in ("queued", "in_progress"):
        response.headers["openai-poll-after-ms"] = _POLL_AFTER
    return response


@dataclass
class _Found:
    """A video of this client.

    Attributes:
        account: that makes it; None if this box does not have it (any more).
        known: what this box knows of it.
    """

    call: LiveCall
    id: str
    ref: VideoRef
    account: Account | None
    known: KnownVideo | None

    @property
    def has_ended(self) -> bool:
        """Whether its end is known here, so that nobody need be asked."""
        if self.known is None:
            return False
        output = json_access.mapping(self.known.state.get("output"))
        return output.get("task_status") in _ENDS

    def task(self) -> Mapping[str, Any]:
        """What its task tells now.

        Raises:
            ApiError: the account does not answer, or is not there.
        """
        if self.known is not None and self.has_ended:
            return self.known.state
        if self.account is None:
            raise AccountUnavailable(
                f"The account '{self.ref.account}' that makes this video is not one of this "
                "proxy's any more.",
                code="no_usable_account",
                should_retry=False,
            )
        services = self.call.services
        state = services.looks.look(self.account, self.ref.task)
        if self.known is not None and state.status in _ENDS:
            services.videos.update(self.call.owner, self.id, state.answer)
            self.known = self.known._replace(state=state.answer)
        return state.answer

    def video(self, task: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """OpenAI's object; raises as `task`."""
        return answers.video(
            self.id,
            self.ref,
            self.task() if task is None else task,
            now=self.call.services.clock.now(),
            prompt=None if self.known is None else self.known.prompt,
        )

    def url(self) -> str:
        """Where the finished video is.

        Raises:
            ApiError: 400 `video_not_ready`, 404 `video_expired`, 400 with the reason of a failure;
                and as `task`.
        """
        task = self.task()
        status, error = answers.status_of(self.ref, task, now=self.call.services.clock.now())
        if error is not None:
            if error["code"] == "video_expired":
                raise _expired()
            raise BadRequest(
                f"There is no video: {error['message']}", code=error["code"], should_retry=False
            )
        if status != "completed":
            raise BadRequest(
                f"The video is not ready yet: its status is {status}. GET /v1/videos/{{id}} tells "
                "when it is completed.",
                code="video_not_ready",
            )
        return answers.video_url(task)


def _expired() -> ApiError:
    return NotFound(
        "The video is gone: videos are kept for 24 hours after they were made.",
        code="video_expired",
    )


def _find(call: LiveCall, id: str) -> _Found:
    """A video by its id.

    Raises:
        NotFound: there is none, or it is another client's, or was deleted.
    """
    ref = read_id(id, call.services.state_key.get(), call.owner)
    known = None if ref is None else call.services.videos.get(call.owner, id)
    if ref is None or (known is not None and known.deleted):
        raise NotFound(
            f"No video has the id '{id[:64]}'. Videos are found with the key that created them.",
            param="video_id",
            code="video_not_found",
        )
    call.record.account, call.record.model = ref.account, ref.model
    if not _allows_account(call, ref.account):
        raise Forbidden(
            f"The video is at the account '{ref.account}', which your key may not use any more.",
            code="account_not_allowed",
        )
    return _found(call, id, ref, known)


def _found(call: LiveCall, id: str, ref: VideoRef, known: KnownVideo | None) -> _Found:
    account = _account_of(call, ref.account)
    if not _allows_account(call, ref.account):
        account = None  # in a list: nobody is asked, and it is as it was when it was last seen
    return _Found(call, id, ref, account, known)


def _account_of(call: LiveCall, name: str) -> Account | None:
    """The account that makes a video; one of a caller's web token is the caller's own, because a
    video's id is valid for the same token alone."""
    pool, client = call.services.pool, call.client
    if client is not None and client.web is not None:
        own = pool.of_token(client.web)
        return own if own.name == name else None
    return next((each for each in pool.accounts() if each.name == name), None)


def _allows_account(call: LiveCall, name: str) -> bool:
    if call.client is not None and call.client.web is not None:
        return name == call.services.pool.of_token(call.client.web).name
    return dialects.permit_of(call).allows_account(name)


def _refreshed(call: LiveCall, videos: list[KnownVideo]) -> list[dict[str, Any]]:
    """Videos of a list; those that are not done are looked at anew, as far as that goes."""
    key = call.services.state_key.get()
    found = [
        _found(call, each.id, ref, each)
        for each in videos
        if (ref := read_id(each.id, key, call.owner)) is not None
    ]
    open_ones = [each for each in found if not each.has_ended][:_LOOKS]
    fresh = {each.id for each in open_ones}

    def seen(one: _Found) -> dict[str, Any]:
        assert one.known is not None
        if one.id in fresh:
            try:
                return one.video()
            except ApiError:
                pass  # as it was when it was last seen
        return one.video(one.known.state)

    return list(in_order([partial(seen, each) for each in found], at_a_time=_AT_A_TIME))
