"""Makes a login that was just fetched durable: journal first, then the shared file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from qwen_wsgi.credentials.files import document, durable, journal
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.credentials.files.journal import Closed, Forced, Journal, Received, fingerprint
from qwen_wsgi.credentials.files.login_store import render
from qwen_wsgi.credentials.files.watched import FileIdentity, Unusable
from qwen_wsgi.credentials.oauth.token_endpoint import TokenAnswer
from qwen_wsgi.credentials.refresh.attempt import Outcome, Step
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState
from qwen_wsgi.credentials.refresh.policy import RefreshPolicy
from qwen_wsgi.credentials.refresh.timing import MOST_FORCED

log = logging.getLogger(__name__)

#: How often the file is read again because somebody wrote into it in the very moment.
_TRIES: Final = 4


class Committer:
    """Writes the token endpoint's answer; both locks are held, and the old token is spent."""

    def __init__(self, context: RefreshContext, state: RefreshState, policy: RefreshPolicy) -> None:
        self._context = context
        self._state = state
        self._policy = policy
        self._store = context.store

    def commit(self, step: Step, answer: TokenAnswer) -> tuple[Outcome, str]:
        """Make the answer durable: journal first, then the shared file, unless it moved on."""
        received = self._received(step, answer)
        # With the one before: a call may look at that token in this very moment, and by a wall
        # clock that was not set yet after a sleep it would be good.
        before = list(self._state.deadlines.items())[-1:]
        until_s = answer.sent_boottime_s + answer.life_s
        self._state.deadlines = dict([*before, (received.login.access_token, until_s)])
        new = Journal(
            received=received,
            tombstones=step.journal.tombstones,
            forced=self._forced(step, received),
            closed=_inherited(step.journal.closed, step, received),
            spent=step.journal.spent,
            line=step.journal.line,
            gone=step.journal.gone,
            agreed=step.journal.agreed,
        )
        self._state.closed = _inherited(self._state.closed, step, received)
        if fingerprint(received.login.refresh_token) != step.fp:
            new = new.with_spent(step.fp, received.at_ms)
            new = replace(new, line=(*new.line, step.fp)[-journal.MAX_LINE :])
        # From here on this process has the login, whatever happens to the disk.
        self._store.held = received
        try:
            step.ours.publish(journal.render(new))
        except OSError as error:
            if not step.ours.published and not self._rescue(step, new, error):
                return Outcome.FAILED, "the new login could not be written before the stop"
        self._warn(step, answer)
        self._context.checkpoint("journaled")
        try:
            return self._publish(step, received, new)
        except OSError as error:
            # All workers use the login from the journal, and the next attempt publishes it.
            problem = self._state.read_only = WriteProblem.of(error)
            self._policy.hold_off(
                fingerprint(received.login.refresh_token), self._policy.pause_s(step.snapshot)
            )
            where = self._store.paths.document
            return Outcome.OK, f"in the journal only, {where} cannot be written ({problem.text})"
        finally:
            self._store.held = None

    def _warn(self, step: Step, answer: TokenAnswer) -> None:
        if answer.expires_in_s is None:
            log.warning(
                "the login service sent no lifetime with its token, %.0f s are assumed attempt=%s",
                answer.life_s,
                step.id,
            )
        if answer.clock_skew_s is not None:
            log.warning(
                "the clock of %s differs from this machine's by %.0f s attempt=%s",
                self._context.endpoint.host,
                answer.clock_skew_s,
                step.id,
            )

    def _received(self, step: Step, answer: TokenAnswer) -> Received:
        raw: dict[str, Any] = dict(step.login.raw)
        raw["access_token"] = answer.access_token
        raw["token_type"] = answer.token_type or step.login.token_type
        raw["expiry_date"] = answer.expires_at_ms
        if answer.refresh_token:
            raw["refresh_token"] = answer.refresh_token
        if answer.resource_url:
            raw["resource_url"] = answer.resource_url
        return Received(
            spent=step.fp,
            login=document.parse(render(raw), None),
            at_ms=answer.received_wall_ms,
            lifetime_ms=int(answer.life_s * 1000),
            forced=step.forced,
            published=False,
        )

    def _forced(self, step: Step, received: Received) -> Forced | None:
        """When this login was refreshed because of a refused token, this time included."""
        before = step.journal.forced
        times = before.at_ms if before is not None and before.fp == step.fp else ()
        if step.forced:
            times = (*times, int(self._context.clock.now() * 1000))[-MOST_FORCED:]
        return Forced(fingerprint(received.login.refresh_token), times) if times else None

    def _publish(self, step: Step, received: Received, new: Journal) -> tuple[Outcome, str]:
        """Compare and swap: the CLI's login takes no lock, and a new login of a person wins."""
        for left in reversed(range(_TRIES)):
            before = self._store.identity()
            try:
                there = self._store.reload().reading.value
            except Unusable:
                there = None  # torn by another program's write in place; ours is whole
            if there is not None and fingerprint(there.refresh_token) not in (
                step.fp,
                fingerprint(received.login.refresh_token),
            ):
                # Superseded for good: it must not come back when that login is deleted later.
                with suppress(OSError):  # the other login wins all the same
                    self._store.write_journal(replace(new, received=None))
                return Outcome.ADOPTED, "a new login was made meanwhile, and it is used"
            if there is not None:
                merged = document.with_tokens_of(received.login, there.raw, step.login.raw)
                received = replace(received, login=merged)
            try:
                self._replace(step, received, partial(self._is_still, before, last=not left))
                break
            except durable.TargetChanged:
                continue  # somebody wrote into it this moment: read it again
        self._context.checkpoint("published")
        with suppress(OSError):  # without it the next reader finds that both are the same
            self._store.write_journal(replace(new, received=replace(received, published=True)))
        self._context.checkpoint("finished")
        left_s = received.login.expires_at_ms / 1000 - self._context.clock.now()
        return Outcome.OK, f"valid for {left_s:.0f} s"

    def _is_still(self, version: FileIdentity | None, *, last: bool) -> bool:
        return last or self._store.identity() == version

    def _replace(self, step: Step, received: Received, unchanged: Callable[[], bool]) -> None:
        """Write the shared file, if it is still the version that was read.

        Raises:
            TargetChanged: it is not.
            OSError: it cannot be written.
        """
        try:
            step.shared.publish(render(received.login.raw), unchanged=unchanged)
        except OSError:
            if not step.shared.published:
                raise

    def _rescue(self, step: Step, new: Journal, error: OSError) -> bool:
        """Serve the new login, which exists in memory alone, and retry until the journal has it.

        Our lock stays held, so that no other worker sends the old token, which is spent. The lock
        of qwen-code is released: its heartbeat must not keep a CLI out for hours.

        Returns:
            False if the process stops before it worked.
        """
        self._state.unsaved = WriteProblem.of(error).text
        log.error(
            "the new login cannot be written, keep this process alive! login=%s attempt=%s: %s",
            self._store.shown,
            step.id,
            self._state.unsaved,
        )
        self._context.cli_lock.release()
        self._state.notify_waiters()  # the new token can be used
        while True:
            last_try = self._state.draining
            with suppress(OSError):
                if not step.ours.published:
                    step.ours.publish(journal.render(new))
                break
            with suppress(OSError):  # a new file, in case the reserved one cannot be written
                self._store.write_journal(new)
                break
            if last_try:
                return False
            self._context.sleep(self._context.timing.rescue_s)
        self._state.unsaved = ""
        log.warning("the new login is written now login=%s attempt=%s", self._store.shown, step.id)
        return True


def _inherited(closed: Closed | None, step: Step, received: Received) -> Closed | None:
    """A closed login stays closed with its next token, until the API accepts that."""
    if closed is None or closed.fp != fingerprint(step.login.access_token):
        return closed
    return replace(closed, fp=fingerprint(received.login.access_token))
