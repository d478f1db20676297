"""Begins the task of a video: once, whatever becomes of the answer."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.greenlets import watch_client
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.videos.ids import VideoRef, digest_of, id_of
from qwen_wsgi.protocol.videos.models import video_model
from qwen_wsgi.protocol.videos.request import NativeCall, VideoRequest, native_call
from qwen_wsgi.upstream.client import JsonAnswer
from qwen_wsgi.upstream.executor import UnaryCall, UnaryRequests
from qwen_wsgi.upstream.routing.router import Route
from qwen_wsgi.upstream.tasks import lost
from qwen_wsgi.upstream.tasks.lost import NEAR_S, Others, Sent
from qwen_wsgi.upstream.tasks.tasks import TaskState, task_id_of

_OSS: Final = "oss://"


class Started(NamedTuple):
    """A video whose task has begun."""

    id: str
    ref: VideoRef
    route: Route
    state: TaskState


def start(call: LiveCall, request: VideoRequest) -> Started:
    """Begin a video.

    A client that leaves meanwhile stops nothing, because nobody would know of the task then: the
    video is in its list.

    Raises:
        ApiError: no account has begun it; or it is not known whether one has (`task_may_run`).
    """
    services = call.services
    key = services.state_key.get()  # without it, nothing may begin
    call.record.model = request.model
    plan = services.router.plan(
        request.model,
        permit=generation.permit_of(call),
        capability=Capability.VIDEO,
    )
    path = video_model(plan.routes[0].model).path
    work = _Start(call, request)
    unary = UnaryCall(
        path,
        _headers(call, request),
        call.record,
        work.requests,
        at_origin=True,
        once=True,
        # Only Model Studio lists its tasks.
        recover=None if plan.routes[0].account.family is Family.WEB else work.recover,
    )
    if call.watch is not None:
        call.watch.stop()
    try:
        answer = services.executor.unary(unary, plan.alike(lambda model: video_model(model).path))
    except ApiError as error:
        if error.code != lost.MAY_RUN:
            work.forget()
        raise
    assert answer is not None  # no cause is taken for a missing path
    started = work.begun(key, answer.route, answer.answers[0].value)
    call.watch = watch_client(call.environ)
    return started


def _headers(call: LiveCall, request: VideoRequest) -> dict[str, str]:
    headers = {**generation.forwarded_headers(call.environ), "X-DashScope-Async": "enable"}
    if _OSS in request.picture or any(_OSS in str(value) for value in request.own.values()):
        headers["X-DashScope-OssResourceResolve"] = "enable"
    return headers


class _Start:
    """The request of one call: what is sent to an account, and what is known of it meanwhile."""

    def __init__(self, call: LiveCall, request: VideoRequest) -> None:
        self._call = call
        self._services = call.services
        self._request = request
        self._native: NativeCall | None = None
        #: Of the note that a request is under way.
        self._key = 0
        self._recovered = False

    def requests(self, route: Route) -> UnaryRequests:
        """What an account is sent; noted before it is."""
        self.forget()  # of the account before, which has begun nothing
        if route.account.family is Family.WEB:
            return self._of_web_account(route)
        native = native_call(
            self._request, model=route.model, strict=self._services.settings.strict
        )
        self._note(route, native)
        return UnaryRequests([native.body], native.changed)

    def _of_web_account(self, route: Route) -> UnaryRequests:
        """What is done at a web account, which chooses size and length itself."""
        account, web = route.account, self._services.web_media
        wanted = web.video_request(account, route.model, self._request)
        self._note(route, NativeCall("", b"", wanted.changed, "auto", "auto"))
        headers = generation.forwarded_headers(self._call.environ)

        def begun() -> JsonAnswer:
            return JsonAnswer(b"", web.begin_video(account, wanted, headers), "")

        return UnaryRequests((), wanted.changed, works=[begun])

    def _note(self, route: Route, native: NativeCall) -> None:
        self._native = native
        self._key = self._services.videos.begin(self._call.owner, route.account.name, route.model)

    def forget(self) -> None:
        """No task has begun."""
        if self._key:
            self._services.videos.not_begun(self._key)
        self._key = 0

    def recover(self, route: Route, began: float, error: UpstreamError) -> dict[str, Any] | None:
        """Look for the task of a request without an answer (`UnaryCall.recover`)."""
        sent = Sent(route.model, self._request.prompt, began, self._services.clock.now())
        others = partial(self._services.videos.others, self._key, began - NEAR_S)
        found = self._services.lost_tasks.find(route.account, sent, lambda: Others(*others()))
        if found is None:
            return None
        self._recovered = True
        return {"output": {"task_id": found, "task_status": "PENDING"}}

    def begun(self, key: bytes, route: Route, answer: dict[str, Any]) -> Started:
        """Note the task, and make the video's id.

        Raises:
            ApiError: it is the task of another request.
        """
        services, native = self._services, self._native
        assert native is not None
        task = task_id_of(answer)
        created = int(services.clock.now())
        ref = VideoRef(
            route.account.name,
            task,
            self._request.model,
            created,
            native.size,
            native.seconds,
            digest_of(self._request.prompt) if self._recovered else "",
        )
        id = id_of(ref, key, self._call.owner)
        state = TaskState("PENDING", {"output": {"task_id": task, "task_status": "PENDING"}})
        if not services.videos.begun(self._key, id, task, self._request.prompt, state.answer):
            raise lost.may_run("the one that fits belongs to another request")
        if native.seconds.isdecimal():
            self._call.record.units = (("seconds", int(native.seconds)),)
        return Started(id, ref, route, state)
