"""Looks at tasks, waits for them and cancels them, at the account that has begun them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import ApiError, UpstreamError
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import json_access
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.routing.accounts import token_of
from qwen_wsgi.upstream.web.media import WebMedia

PATH: Final = "/api/v1/tasks"
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
#: Model Studio takes 20 questions a second for all tasks of an account.
_FIRST_S: Final = 0.5
_LATER_S: Final = 3.0

log = logging.getLogger(__name__)

#: Asks an account for the state of a task, by its id.
Look = Callable[[Account, str], "TaskState"]


@dataclass(frozen=True)
class TaskState:
    """What a look at a task told.

    Attributes:
        status: Model Studio's word: PENDING, RUNNING, SUSPENDED, SUCCEEDED, FAILED, CANCELED, or
            UNKNOWN, for an id that is wrong or older than 24 hours.
        answer: the whole answer: `{"output": {…}, "usage"?: {…}}`.
    """

    status: str
    answer: Mapping[str, Any]

    @property
    def is_open(self) -> bool:
        """Whether it is not at its end."""
        return self.status in ("PENDING", "RUNNING", "SUSPENDED")

    @property
    def output(self) -> Mapping[str, Any]:
        return json_access.mapping(self.answer.get("output"))


def task_id_of(answer: Mapping[str, Any]) -> str:
    """The id in the answer to a request that begins a task.

    Raises:
        UpstreamError: there is none that can be used.
    """
    id = json_access.mapping(answer.get("output")).get("task_id")
    if not is_task_id(id):
        raise UpstreamError(
            "The upstream began a task without an id.",
            code="upstream_bad_answer",
            should_retry=False,
        )
    return id


def is_task_id(id: object) -> TypeGuard[str]:
    """Whether it can be an id of a task: one goes into a path."""
    return isinstance(id, str) and _ID.fullmatch(id) is not None


class Tasks:
    """Asks accounts about their tasks. Shared by all greenlets of a worker; keeps nothing."""

    def __init__(
        self,
        client: UpstreamClient,
        clock: Clock,
        web: WebMedia | None = None,
        *,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._client = client
        self._web = web
        self._clock = clock
        self._sleep = sleep

    def look(self, account: Account, id: str) -> TaskState:
        """Ask for a task's state.

        Raises:
            ApiError: no answer, or a refusal.
        """
        if account.family is Family.WEB and self._web is not None:
            answer = self._web.look(account, id)
        else:
            answer = self._client.get_json(account, f"{PATH}/{id}")
        status = json_access.mapping(answer.get("output")).get("task_status")
        if not isinstance(status, str):
            raise UpstreamError(
                "The upstream told no status of a task.", code="upstream_bad_answer"
            )
        return TaskState(status.upper(), answer)

    def wait(
        self, account: Account, id: str, *, within_s: float, look: Look | None = None
    ) -> TaskState:
        """Wait until a task has succeeded; a caller that leaves before its end cancels it.

        Args:
            look: asks for its state; None asks the account each time.

        Raises:
            UpstreamError: it failed, or is not done in time.
        """
        ended = False
        try:
            state = self._wait(account, id, within_s, look or self.look)
            ended = True
        finally:
            if not ended:
                self.cancel_later(account, id)
        if state.status != "SUCCEEDED":
            raise failure_of(state, account, self._clock.now())
        return state

    def _wait(self, account: Account, id: str, within_s: float, look: Look) -> TaskState:
        end_s = self._clock.monotonic() + within_s
        pause_s, missed = _FIRST_S, 0
        while True:
            try:
                state = look(account, id)
                missed = 0
                if not state.is_open:
                    return state
            except ApiError:
                # The task runs on: a question that is lost is asked again.
                missed += 1
                if missed > 3:
                    raise
            if self._clock.monotonic() + pause_s > end_s:
                raise connection_error(
                    "timeout",
                    f"The upstream's task was not done within {within_s:g} s "
                    "(QWEN_PROXY_FIRST_BYTE_TIMEOUT of this proxy), so it was given up.",
                )
            self._sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LATER_S)

    def cancel(self, account: Account, id: str) -> bool:
        """Cancel a task; only one that waits can be, and none of a web account. Whether it was.

        Raises:
            ApiError: no answer, or another refusal.
        """
        if account.family is Family.WEB:
            return False
        try:
            self._client.post_json(
                account, f"{PATH}/{id}/cancel", b"{}", headers={}, at_origin=True
            )
        except UpstreamError as error:
            if error.status == 400:
                return False
            raise
        return True

    def cancel_later(self, account: Account, id: str) -> None:
        """Cancel a task that nobody waits for any more, without waiting for the answer."""

        def cancel() -> None:
            try:
                done = self.cancel(account, id)
                log.info(
                    "a task is not waited for any more account=%s canceled=%s", account.name, done
                )
            except ApiError as error:
                log.info("a task could not be canceled account=%s: %s", account.name, error.message)

        threading.Thread(target=cancel, name="cancel-task", daemon=True).start()


def failure_of(state: TaskState, account: Account, now: float) -> UpstreamError:
    """The error for a task that ended otherwise than well."""
    output = state.output
    message = json_access.text(output.get("message"))
    if state.status == "FAILED" and message:
        frame = {"code": json_access.text(output.get("code")), "message": message}
        return classify.from_frame(
            frame,
            account=account.name,
            family=account.family,
            now=now,
            secrets=(token_of(account).value,),
        )
    if state.status == "CANCELED":
        return UpstreamError("The task was cancelled.", code="upstream_task_cancelled")
    return UpstreamError(
        f"The task ended as {state.status[:32]}, without a reason.", code="upstream_task_failed"
    )
