"""The transaction of one attempt: spends a refresh token and keeps its successor.

A refresh token is taken to be single-use. So it is sent only by the holder of both locks, only
after the room for its successor was reserved and the intent is on disk, and its successor goes into
the journal before anything else. What each crash leaves behind, and how the next process goes on,
is in docs/credentials.md; `checkpoint` names those points, for tests.
"""

from __future__ import annotations

import datetime
import logging
import os
from contextlib import suppress
from dataclasses import replace
from typing import Final

from qwen_wsgi.credentials.files import document, durable
from qwen_wsgi.credentials.files.journal import Backoff, Intent
from qwen_wsgi.credentials.files.login_store import Snapshot, render
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.oauth.errors import (
    Ambiguous,
    NotSent,
    OAuthFailure,
    Rejected,
    Throttled,
)
from qwen_wsgi.credentials.oauth.token_endpoint import TokenAnswer
from qwen_wsgi.credentials.refresh.attempt import Outcome, Step
from qwen_wsgi.credentials.refresh.commit import Committer
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState
from qwen_wsgi.credentials.refresh.policy import RefreshPolicy
from qwen_wsgi.credentials.shared.shared_login import SharedLogin

log = logging.getLogger(__name__)

#: Doublings of the pause after which it is the longest for certain.
_DOUBLINGS: Final = 16

#: Outcomes after which the refresh token is as good as before.
_UNSPENT: Final = (Outcome.NOT_SENT, Outcome.THROTTLED, Outcome.REFUSED)


class _Stopping(NotSent):
    """The process is stopping: nothing was sent, and nothing will be."""


class _Superseded(NotSent):
    """Another program refreshed the login, or a person logged in, while we connected."""


class Transaction:
    """The work of an attempt while both locks are held."""

    def __init__(self, context: RefreshContext, state: RefreshState, policy: RefreshPolicy) -> None:
        self._context = context
        self._state = state
        self._policy = policy
        self._committer = Committer(context, state, policy)
        self._store = context.store

    def run(self, id: str, rejected: str | None) -> tuple[Outcome, str]:
        """Publish a login that is in the journal alone, then refresh it if that is due.

        Args:
            id: stands in every log line of the attempt.
            rejected: the access token that the API refused.

        Raises:
            OSError: a file cannot be written; nothing was sent.
        """
        self._context.checkpoint("locked")
        self._store.sweep(alone=True)
        try:
            snapshot = self._store.reload()
        except Unusable as error:
            return Outcome.FAILED, f"the file {error}; nothing was sent"
        if restored := snapshot.newest.unpublished:
            snapshot = self._republish(id, snapshot)
        if self._policy.is_settled(snapshot, rejected):
            if restored:
                return Outcome.OK, "a login that was in the journal alone was written to the file"
            return Outcome.ADOPTED, "another process renewed it"
        if not self._policy.is_due(snapshot, rejected):
            return Outcome.NOT_DUE, "no attempt is due"
        shared = self._context.shared
        if shared is None:
            return self._spend(id, rejected, snapshot)
        if why := shared.enter():
            return Outcome.LEFT, why
        try:
            return self._spend_shared(id, rejected, shared)
        finally:
            shared.leave()

    def _spend_shared(
        self, id: str, rejected: str | None, shared: SharedLogin
    ) -> tuple[Outcome, str]:
        """The same with the right of this box to renew: what the other boxes know came just now."""
        snapshot = self._store.reload()
        if snapshot.newest.unpublished:
            snapshot = self._republish(id, snapshot)
        if self._policy.is_settled(snapshot, rejected):
            return Outcome.ADOPTED, "another box renewed it"
        if not self._policy.is_due(snapshot, rejected):
            return Outcome.NOT_DUE, "no attempt is due"
        outcome, detail = self._spend(id, rejected, snapshot)
        if outcome in _UNSPENT:
            shared.not_spent()
        shared.publish()
        return outcome, detail

    def _spend(self, id: str, rejected: str | None, snapshot: Snapshot) -> tuple[Outcome, str]:
        login = snapshot.newest.login
        assert login is not None  # due
        shared, ours = self._store.reserve(login)
        self._state.read_only = None
        self._context.checkpoint("reserved")
        try:
            return self._exchange(Step(id, rejected, snapshot, login, shared, ours))
        finally:
            shared.discard()
            ours.discard()

    def _republish(self, id: str, snapshot: Snapshot) -> Snapshot:
        """Write the journal's login, which a crash kept from the shared file, and read it again."""
        login, received = snapshot.newest.login, snapshot.journal.received
        assert login is not None
        there = snapshot.reading.value
        login = login if there is None else document.with_tokens_of(login, there.raw)
        durable.replace_file(self._store.paths.document, render(login.raw))
        self._state.read_only = None
        self._context.checkpoint("published")
        if received is not None:
            published = replace(received, login=login, published=True)
            self._store.write_journal(replace(snapshot.journal, received=published))
        if received is not None and received.spent and self._context.shared is not None:
            log.info("login written to the file login=%s attempt=%s", self._store.shown, id)
        else:
            log.warning(
                "login restored from the journal login=%s attempt=%s", self._store.shown, id
            )
        return self._store.reload()

    def _exchange(self, step: Step) -> tuple[Outcome, str]:
        """Spend the refresh token. It is sent a second time only if the first answer was lost."""
        try:
            answer = self._send(step, self._context.timing.first_timeout_s)
        except Ambiguous as first:
            self._context.checkpoint("ambiguous")
            log.warning(
                "login refresh: the answer was lost, sending once more attempt=%s: %s",
                step.id,
                first,
            )
            try:
                answer = self._send(step, self._context.timing.second_timeout_s)
            except _Superseded as second:
                return Outcome.ADOPTED, str(second)
            except Rejected as second:
                return self._rejected(step, second, lost=True)
            except OAuthFailure as second:
                # Whatever happened to the second request, the first may have been carried out.
                return self._back_off(step, Outcome.AMBIGUOUS, f"{first}; then: {second}")
        except _Superseded as failure:
            return Outcome.ADOPTED, str(failure)
        except _Stopping as failure:
            return Outcome.NOT_SENT, str(failure)
        except NotSent as failure:
            return self._back_off(step, Outcome.NOT_SENT, str(failure))
        except Rejected as failure:
            return self._rejected(step, failure, lost=False)
        except Throttled as failure:
            return self._back_off(
                step, Outcome.THROTTLED, str(failure), pause_s=failure.retry_after_s
            )
        except OAuthFailure as failure:
            return self._back_off(step, Outcome.REFUSED, str(failure))
        self._context.checkpoint("answered")
        return self._committer.commit(step, answer)

    def _send(self, step: Step, timeout_s: tuple[float, float]) -> TokenAnswer:
        return self._context.endpoint.refresh(
            step.login.refresh_token,
            timeout_s=timeout_s,
            before_send=lambda: self._intend(step),
        )

    def _intend(self, step: Step) -> None:
        """Check, right before the token is sent, that we may spend it, and record the intent."""
        if self._state.draining and not step.sent:
            raise _Stopping("the process is stopping")
        # Also before the repetition: the lock's new owner is about to send the same token.
        if not self._context.cli_lock.check():
            raise NotSent("qwen-code took its lock away")
        if self._replaced(step):
            raise _Superseded("another program renewed the login meanwhile")
        intent = Intent(step.fp, os.getpid(), int(self._context.clock.now() * 1000), step.id)
        try:
            self._store.write_journal(replace(step.journal, intent=intent))
        except OSError as error:
            raise NotSent(f"the journal cannot be written ({error.strerror})") from error
        shared = self._context.shared
        if shared is not None and (why := shared.may_send(step.fp)):
            raise NotSent(why)
        step.sent = True
        self._context.checkpoint("intent")

    def _replaced(self, step: Step) -> bool:
        with suppress(OSError, Unusable):
            login = self._store.reload().newest.login
            return login is None or login.refresh_token != step.login.refresh_token
        return False

    # --- failures ---------------------------------------------------------------------------------

    def _rejected(self, step: Step, failure: Rejected, *, lost: bool) -> tuple[Outcome, str]:
        """Handle a refused refresh token: another program may have spent it, else it is dead."""
        self._context.sleep(self._context.timing.rejected_pause_s)
        current = step.journal
        with suppress(OSError, Unusable):
            snapshot = self._store.reload()
            there = snapshot.newest.login
            if there is not None and there.refresh_token != step.login.refresh_token:
                return Outcome.ADOPTED, "another process had renewed it"
            current = snapshot.journal
        self._state.refused |= {step.fp}
        now_ms = int(self._context.clock.now() * 1000)
        with suppress(OSError):
            self._store.write_journal(
                replace(current, intent=None, backoff=None).with_tombstone(step.fp, now_ms)
            )
        why = f"the endpoint refused the refresh token ({failure})"
        if lost:
            why += "; the answer to the first request was lost, and it was the login"
        elif (earlier := step.earlier) is not None:
            why += (
                f"; it had been sent before, by process {earlier.pid} at {_utc(earlier.at_ms)} "
                f"(attempt {earlier.attempt}), and the answer, which was the login, was lost in "
                "a crash or on the way"
            )
        return Outcome.REJECTED, why + ". A new login is needed"

    def _back_off(
        self, step: Step, outcome: Outcome, detail: str, *, pause_s: float | None = None
    ) -> tuple[Outcome, str]:
        """Record, for all workers, until when no other attempt is made."""
        longest_s = self._context.timing.longest_retry_s
        before = step.journal.backoff
        failures = before.failures + 1 if before and before.fp == step.fp else 1
        if pause_s is None:
            pause_s = self._policy.pause_s(step.snapshot) * 2 ** min(failures - 1, _DOUBLINGS)
            if outcome is Outcome.NOT_SENT and self._policy.is_urgent(step.snapshot):
                pause_s = min(pause_s, self._context.timing.urgent_retry_s)
        pause_s = min(pause_s, longest_s)
        self._policy.hold_off(step.fp, pause_s)
        now_ms = int(self._context.clock.now() * 1000)
        until_ms = now_ms + int(pause_s * 1000)
        backoff = Backoff(step.fp, failures, until_ms, outcome.value, now_ms)
        with suppress(OSError, Unusable):
            current = self._store.reload().journal
            # A lost answer stays on record until the token is known to be good or bad.
            intent = current.intent if outcome is Outcome.AMBIGUOUS else step.earlier
            self._store.write_journal(replace(current, backoff=backoff, intent=intent))
        return outcome, detail


def _utc(at_ms: int) -> str:
    with suppress(OverflowError, ValueError, OSError):
        at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
        return f"{at:%Y-%m-%dT%H:%M:%SZ}"
    return "an impossible time"
