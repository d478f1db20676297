"""Makes the responses that clients do not wait for: takes them from the queue, and ends each once.

Every worker looks at the queue (`state.database.background`) twice a second, and at once after a
request of its own. It works at some responses at a time, beside and apart from the calls that
clients wait for, and breaks one off that was cancelled by way of another worker, or that is late.

A response whose worker is gone is not made again: nobody can tell what its upstream did, and it
would be paid twice. It becomes `failed`, and says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, CallCancelled, ClientGone, forget_frames
from qwen_wsgi.greenlets import Strand, lock
from qwen_wsgi.protocol.responses import background as protocol
from qwen_wsgi.shortage import fault_error
from qwen_wsgi.state.database.background import BackgroundQueue, Job
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.workers import this_worker

log = logging.getLogger(__name__)

#: Between two looks at the queue.
LOOK_S: Final = 0.5
#: Between two signs of life, and two searches for what others have left; far below
#: `state.workers.SILENT_S`.
BEAT_S: Final = 5.0
#: How long what a stop breaks off may take to be written down.
_WRITE_S: Final = 3.0
#: Between two signs of life towards gunicorn, while a stop waits.
_STEP_S: Final = 1.0

Work = Callable[[Job], dict[str, Any]]


class Background:
    """The responses in the background of one worker, used by its greenlets.

    Args:
        limit: responses made at a time; 0 makes none.
        stop_s: how long a stop lets those under way go on.
        elsewhere: ends a response that another box makes; its object, or None if none makes it.

    Attributes:
        work: makes the whole response of a job; raises ApiError for a failed one. Set by the API.
    """

    def __init__(
        self,
        queue: BackgroundQueue,
        responses: ResponseStore,
        clock: Clock,
        *,
        limit: int,
        stop_s: float,
        elsewhere: Callable[[str, str], dict[str, Any] | None] = lambda owner, id: None,
    ) -> None:
        self.queue = queue
        self.work: Work | None = None
        self._responses = responses
        self._clock = clock
        self._limit = limit
        self._stop_s = stop_s
        self._elsewhere = elsewhere
        #: Those under way, each with its greenlet.
        self._running: dict[int, tuple[Job, Strand]] = {}
        #: Why one under way is broken off; those of which nobody is to hear are not here.
        self._why: dict[int, ApiError] = {}
        #: Those that are broken off, or whose end is being stored: they are left alone.
        self._ending: set[int] = set()
        #: Held from when one is marked as ending until its end is stored, unless it is running: who
        #: looks for those that were left must not find it meanwhile.
        self._ends = lock()
        self._beaten_s = float("-inf")
        #: When a stop breaks off what is under way; None while there is no stop.
        self._stop_at_s: float | None = None
        self._ended = False
        self._wake = threading.Event()

    @property
    def in_flight(self) -> int:
        """How many are under way in this worker."""
        return len(self._running)

    def start(self) -> None:
        """Begin to look at the queue, in this process: after the fork."""
        threading.Thread(target=self._run, name="background", daemon=True).start()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended:
            try:
                self.look()
            except ApiError:
                pass  # the queue has told the log
            except Exception as error:  # the thread's top: the next look may go better
                log.error("responses in the background: a look failed", exc_info=error)
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def look(self) -> None:
        """Look at the queue once: break off what is not wanted, begin what there is room for.

        Raises:
            ApiError: the queue cannot be used now.
        """
        if not self.queue.is_used:
            return
        worker = this_worker()
        mine = self.queue.mine(worker) if self._running else frozenset()
        for key, (job, strand) in list(self._running.items()):
            if strand.has_ended:  # it was broken off before it began
                self._forget(key)
            elif key in self._ending:
                continue
            elif key not in mine:
                self._break_off(key)
            elif self._clock.now() > job.deadline:
                self._why[key] = _late()
                self._break_off(key)
        now_s = self._clock.monotonic()
        if now_s - self._beaten_s >= BEAT_S:
            self._beaten_s = now_s
            self.queue.beat(self._running)
            with self._ends:
                self._end_left_ones(worker)
        while self._has_room and self.queue.waits() and (new := self.queue.claim(worker)):
            self._running[new.key] = new, Strand(partial(self._make, new, worker))

    @property
    def _has_room(self) -> bool:
        return self._stop_at_s is None and len(self._running) < self._limit

    def _end_left_ones(self, worker: str) -> None:
        """End those that nobody works at any more, and those that nobody has begun in time."""
        for job in self.queue.lost(worker, self._running):
            if self.queue.take_over(job, worker):
                if self._responses.get(job.owner, job.id) is not None:
                    self.queue.end(job.key)  # it was stored just before its worker died
                else:
                    log.warning("a response in the background was lost id=%s", job.id)
                    self.finish(job, protocol.failed(job.stored.response, _lost()))
        while (late := self.queue.overdue(worker)) is not None:
            self.finish(late, protocol.failed(late.stored.response, _late()))

    # --- one response ------------------------------------------------------------------------

    def _make(self, job: Job, worker: str) -> None:
        """Make one, and store what came of it. Raises nothing."""
        try:
            response = self._outcome(job)
            self._ending.add(job.key)
            if response is not None and self.queue.begin_end(job.key, worker):
                self.finish(job, response)
        except ApiError:
            pass  # the queue has told the log; `lost` finds it again
        except BaseException as error:  # the outermost frame of this greenlet
            log.error("the end of a response in the background is lost", exc_info=error)
        finally:
            self._forget(job.key)
            self.wake()

    def _forget(self, key: int) -> None:
        self._running.pop(key, None)
        self._why.pop(key, None)
        self._ending.discard(key)

    def _outcome(self, job: Job) -> dict[str, Any] | None:
        """The response of a job as it ended; None if nobody is to hear of it."""
        assert self.work is not None, "the API sets it"
        failure: ApiError | None
        try:
            return self.work(job)
        except ApiError as error:
            failure = error
            forget_frames(error)
        except CallCancelled as cancelled:
            failure = cancelled.error
            forget_frames(cancelled)
        except ClientGone:
            failure = self._why.get(job.key)
        except Exception as fault:
            failure = fault_error(fault, job.id)
        except BaseException:  # a stop of the worker, whose time is over
            failure = _stopped()
        return None if failure is None else protocol.failed(job.stored.response, failure)

    def finish(self, job: Job, response: dict[str, Any]) -> None:
        """Store the last object of one that the caller has marked as ending, and take it out of
        the queue.

        Raises:
            ApiError: the queue cannot be used now; `lost` finds it again.
        """
        stored = job.stored
        if not self._responses.put(job.owner, response, stored.input_items, stored.previous):
            if response["output"]:
                response = protocol.failed(stored.response, _not_stored())
            self.queue.keep(job.key, response)
        elif not self.queue.end(job.key):
            self._responses.delete(job.owner, job.id)  # its client has deleted it in this moment

    def cancel(self, owner: str, id: str) -> dict[str, Any] | None:
        """End one as `cancelled`, also if another worker makes it, which sees it within half a
        second, or another box; its object, or None if it has ended or is unknown.

        Raises:
            ApiError: the queue cannot be used now, or the other box does not answer.
        """
        return self.cancel_here(owner, id) or self._elsewhere(owner, id)

    def cancel_here(self, owner: str, id: str) -> dict[str, Any] | None:
        """The same for one of this box."""
        with self._ends:
            job = self.queue.cancel(owner, id, this_worker())
            if job is None:
                return None
            response = protocol.cancelled(job.stored.response)
            self._break_off(job.key)
            self.finish(job, response)
            return response

    def delete(self, owner: str, id: str) -> bool:
        """Forget one, and break it off; whether it was in the queue. Raises as `cancel`."""
        job = self.queue.delete(owner, id)
        if job is not None:
            self._break_off(job.key)
        return job is not None

    def _break_off(self, key: int, *, client_gone: bool = True) -> None:
        if key in self._running and key not in self._ending:
            self._ending.add(key)
            self._running[key][1].break_off(client_gone=client_gone)

    # --- the end of the worker ---------------------------------------------------------------

    def drain(self) -> None:
        """Begin no more: the worker stops. Those under way go on for the time of a stop."""
        if self._stop_at_s is None:
            self._stop_at_s = self._clock.monotonic() + self._stop_s

    def stop(self, notify: Callable[[], None] = lambda: None) -> None:
        """Wait for those under way until the time that `drain` began is over, then break them off:
        they become `failed`. Those that wait stay in the queue for the next start.

        Args:
            notify: called every second: the worker lives.
        """
        end_s = self._clock.monotonic() if self._stop_at_s is None else self._stop_at_s
        self._stop_at_s = end_s
        while self._running and (left_s := end_s - self._clock.monotonic()) > 0:
            notify()
            self.wait(min(left_s, _STEP_S))
        for key in list(self._running):
            self._break_off(key, client_gone=False)
        self.wait(_WRITE_S)
        self._ended = True
        self.wake()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of those under way, at most for so long."""
        strands: Iterable[Strand] = [strand for _, strand in self._running.values()]
        Strand.wait_for(strands, timeout_s)


def _lost() -> ApiError:
    return ApiError(
        "The process that made this response ended before it was complete. What the upstream had "
        "done is not known, so it was not asked again. Create the response anew.",
        code="background_lost",
    )


def _stopped() -> ApiError:
    return ApiError(
        "The proxy was stopped or restarted before this response was complete. What the upstream "
        "had done is lost. Create the response anew.",
        code="proxy_stopping",
    )


def _late() -> ApiError:
    return ApiError(
        "This response was not complete in time: within its completion window, or without one "
        "within QWEN_PROXY_BACKGROUND_TIMEOUT of the server.",
        code="background_timeout",
    )


def _not_stored() -> ApiError:
    return ApiError(
        "The response was made, but it could not be stored: the log of the proxy says why.",
        code="background_not_stored",
    )
