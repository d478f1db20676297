"""Has pictures made, by Model Studio's native API or in chats of a web account; fetches them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import ApiError
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.images.models import Road, image_model
from qwen_wsgi.protocol.images.request import ImageRequest, native_calls
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.client import JsonAnswer
from qwen_wsgi.upstream.executor import Executor, UnaryAnswer, UnaryCall, UnaryRequests
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.routing.accounts import base_url_of
from qwen_wsgi.upstream.routing.router import Plan, Route
from qwen_wsgi.upstream.tasks.tasks import Tasks, task_id_of
from qwen_wsgi.upstream.web.media import WebMedia

#: A picture of the largest size that a model makes, as PNG, is below.
_PICTURE_BYTES: Final = 25 * 1024 * 1024


class Pictures:
    """Makes pictures. Shared by all greenlets of a worker; keeps nothing."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        tasks: Tasks,
        downloads: Downloads,
        web: WebMedia,
    ) -> None:
        self._within_s = settings.first_byte_timeout_s
        self._executor = executor
        self._tasks = tasks
        self._downloads = downloads
        self._web = web

    def make(
        self,
        request: ImageRequest,
        plan: Plan,
        headers: Mapping[str, str],
        record: CallRecord,
        *,
        strict: bool,
    ) -> UnaryAnswer:
        """The native answers; those of tasks are their last states.

        Args:
            headers: of the client, for the upstream.
            strict: refuse what the model lacks.

        Raises:
            ApiError: no account answered.
        """
        if plan.routes[0].account.family is Family.WEB:
            return self._of_web_account(request, plan, headers, record)
        road = image_model(plan.routes[0].model).road
        headers = dict(headers)
        if road is not Road.SYNC:
            headers["X-DashScope-Async"] = "enable"
        if any(url.startswith("oss://") for url in request.pictures):
            headers["X-DashScope-OssResourceResolve"] = "enable"

        def requests(route: Route) -> UnaryRequests:
            native = native_calls(request, model=route.model, strict=strict)
            return UnaryRequests(native.bodies, native.changed)

        unary = UnaryCall(
            road.value, headers, record, requests, at_origin=True, once=True, several=True
        )
        answer = self._executor.unary(unary, plan.alike(lambda model: image_model(model).road))
        assert answer is not None  # no cause is taken for a missing path
        return answer if road is Road.SYNC else self._ended(answer)

    def _of_web_account(
        self, request: ImageRequest, plan: Plan, headers: Mapping[str, str], record: CallRecord
    ) -> UnaryAnswer:
        """Pictures of a web account, each in a chat of its own."""

        def requests(route: Route) -> UnaryRequests:
            account, web = route.account, self._web
            wanted = web.picture_request(account, route.model, request)
            files = web.upload(account, wanted, headers)

            def made() -> JsonAnswer:
                return JsonAnswer(b"", web.picture(account, wanted, files, headers), "")

            return UnaryRequests((), wanted.changed, works=[made] * request.count)

        unary = UnaryCall("", headers, record, requests, once=True, several=True)
        answer = self._executor.unary(unary, plan)
        assert answer is not None  # no cause is taken for a missing path
        return answer

    def _ended(self, answer: UnaryAnswer) -> UnaryAnswer:
        """Wait for the tasks that were begun."""
        wait = partial(self._tasks.wait, answer.route.account, within_s=self._within_s)
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

    def fetch(self, url: str, route: Route, *, max_bytes: int) -> bytes:
        """The bytes of a picture that an answer of this route names.

        Raises:
            UpstreamError: it may not be fetched, is larger, or does not come.
        """
        most = min(_PICTURE_BYTES, max_bytes)
        return self._downloads.open(url, base_url_of(route.account), max_bytes=most).read()
