"""Finds out whether a task began whose request was sent and had no answer.

Work that costs money must not be begun twice. Model Studio has a list of the account's tasks, with
times and models and without prompts: a task that fits is taken for ours only where nothing else can
be meant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import ApiError, UpstreamTimeout
from qwen_wsgi.protocol import json_access
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.tasks.tasks import PATH, Tasks, is_task_id

log = logging.getLogger(__name__)

#: The code of an error after which nobody may send a request again.
MAY_RUN: Final = "task_may_run"

#: Pauses before each look at the list: a task is in it a moment after it began.
_PAUSES_S: Final = (1.0, 2.0, 4.0)
#: All looks together; each question has its own time besides.
_WITHIN_S: Final = 30.0
_QUESTION_S: Final = 10.0
#: A task of this time around the request may be ours; clocks may differ by so much.
NEAR_S: Final = 120.0
#: One of this time is ours, where it is the only one.
_CLOSE_S: Final = 15.0
_PAGE: Final = 100
_MOST_PAGES: Final = 5
#: Tasks that are asked for their prompts.
_MOST_LOOKS: Final = 10
#: The list's times have no zone: with so much more, both Beijing's and UTC are in the window.
_BEIJING_S: Final = 8 * 3600


class Candidate(NamedTuple):
    """A task of the list.

    Attributes:
        began: seconds since 1970.
        prompt: as a look at it told; None while that is not known.
    """

    id: str
    began: float
    prompt: str | None = None


@dataclass(frozen=True)
class Sent:
    """A request without an answer.

    Attributes:
        began, ended: when it was sent, and when its answer was given up; seconds since 1970.
    """

    model: str
    prompt: str
    began: float
    ended: float


@dataclass(frozen=True)
class Others:
    """What is known of other requests of this box, at the same account and for the same model.

    Attributes:
        tasks: ids that belong to them.
        open: how many were sent at this time and have no task yet: a task may be theirs.
    """

    tasks: Collection[str] = ()
    open: int = 0


class Unclear(NamedTuple):
    """A task may have begun. `why` ends the sentence `It is not known which:`."""

    why: str


def decide(sent: Sent, candidates: Iterable[Candidate], others: Others) -> str | Unclear | None:
    """The id of the task that a request began; None if it began none.

    A wrong id would give a client the video of another one, and a wrong None would make the video
    twice: where either could be, it is unclear.
    """
    near = [
        each
        for each in candidates
        if each.id not in others.tasks
        and sent.began - NEAR_S <= each.began <= sent.ended + NEAR_S
        and each.prompt in (None, sent.prompt)
    ]
    if not near:
        return None
    same = [each for each in near if each.prompt is not None]
    if len(near) > 1 and len(same) != 1:
        return Unclear(f"{len(near)} tasks of the account began at that time")
    found = same[0] if same else near[0]
    if found.prompt is None:
        if others.open:
            return Unclear("another request at that time has no answer either")
        if not sent.began - _CLOSE_S <= found.began <= sent.ended + _CLOSE_S:
            return Unclear("a task of the account began near that time")
    return found.id


class LostTasks:
    """Looks for lost tasks. Shared by all greenlets of a worker; keeps nothing."""

    def __init__(
        self,
        client: UpstreamClient,
        tasks: Tasks,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self._client = client
        self._tasks = tasks
        self._clock = clock
        self._sleep = sleep

    def find(self, account: Account, sent: Sent, others: Callable[[], Others]) -> str | None:
        """The id of the task that a request began; None if it began none.

        Takes seven seconds where it began none; with a slow host half a minute and a bit.

        Args:
            others: asked anew before each decision.

        Raises:
            UpstreamTimeout: it is not clear, so nobody may send the request again.
        """
        end_s = self._clock.monotonic() + _WITHIN_S
        found: str | Unclear | None = None
        for pause_s in _PAUSES_S:
            self._sleep(pause_s)
            try:
                listed = self._listed(account, sent, end_s)
            except ApiError as error:
                found = Unclear(f"the account's list of tasks cannot be read ({error.message})")
                continue
            known = others()
            new = [each for each in listed if each.id not in known.tasks]
            if 1 < len(new) <= _MOST_LOOKS:
                new = [self._looked_at(account, each, end_s) for each in new]
            found = decide(sent, new, known)
            if isinstance(found, str):
                break
        log.warning(
            "the answer to a request that begins a task was lost account=%s model=%s found=%s",
            account.name,
            sent.model,
            found.why if isinstance(found, Unclear) else found or "no task",
        )
        if isinstance(found, Unclear):
            raise may_run(found.why)
        return found

    def _looked_at(self, account: Account, candidate: Candidate, end_s: float) -> Candidate:
        """With the prompt, if the task tells it."""
        if self._clock.monotonic() > end_s:
            return candidate
        try:
            prompt = self._tasks.look(account, candidate.id).output.get("orig_prompt")
        except ApiError:
            return candidate
        return candidate._replace(prompt=prompt if isinstance(prompt, str) else None)

    def _listed(self, account: Account, sent: Sent, end_s: float) -> list[Candidate]:
        """The account's tasks of the model, around the request.

        Raises:
            ApiError: they cannot be read, or are too many.
        """
        found: list[Candidate] = []
        for number in range(1, _MOST_PAGES + 1):
            if self._clock.monotonic() > end_s:
                raise UpstreamTimeout("it comes too slowly")
            query = {
                "start_time": _digits(sent.began - NEAR_S),
                "end_time": _digits(self._clock.now() + NEAR_S + _BEIJING_S),
                "model_name": sent.model,
                "page_no": number,
                "page_size": _PAGE,
            }
            answer = self._client.get_json(
                account, f"{PATH}?{urlencode(query)}", timeout_s=_QUESTION_S
            )
            # The page of the API and the vendor's SDK have different names for it.
            entries = answer.get("data", answer.get("tasks"))
            if not isinstance(entries, list):
                raise UpstreamTimeout("it has another form than documented")
            found += filter(None, (_candidate(each, sent.model) for each in entries))
            if number >= (json_access.integer(answer.get("total_page")) or 1):
                return found
        raise UpstreamTimeout(f"it has more than {_MOST_PAGES * _PAGE} entries")


def _candidate(entry: Any, model: str) -> Candidate | None:
    fields = json_access.mapping(entry)
    id, began = fields.get("task_id"), fields.get("gmt_create")
    if not is_task_id(id) or fields.get("model_name", model) != model:
        return None
    if not isinstance(began, int | float):
        raise UpstreamTimeout("a task in it has no time")
    return Candidate(id, began / 1000)


def _digits(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))


def may_run(why: str) -> UpstreamTimeout:
    """The error where it is not known whether a task runs.

    Args:
        why: see `Unclear`.
    """
    return UpstreamTimeout(
        "The answer to this request was lost. A task may be running, and be billed, so nobody "
        f"should send the request again before that was looked up. It is not known which: {why}. "
        "The operator of this proxy finds it in the account's list of tasks.",
        code=MAY_RUN,
        should_retry=False,
    )
