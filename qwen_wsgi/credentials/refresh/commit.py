"""Makes a login that was just fetched durable: journal first, then the shared file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files import document, journal
from qwen_wsgi.credentials.files.journal import Journal, Received, fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore, render
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.locks.cli_lock import CliLock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenAnswer
from qwen_wsgi.credentials.refresh.attempt import Outcome, Step
from qwen_wsgi.credentials.refresh.judge import RefreshPolicy
from qwen_wsgi.credentials.refresh.pace import RefreshTiming

log = logging.getLogger(__name__)


class Committer:
    """Writes what the token endpoint gave; both locks are held, and the old token is spent."""

    def __init__(
        self,
        store: LoginStore,
        judge: RefreshPolicy,
        cli_lock: CliLock,
        clock: Clock,
        pace: RefreshTiming,
        *,
        host: str,
        sleep: Callable[[float], None],
        checkpoint: Callable[[str], None],
        is_draining: Callable[[], bool],
        tell: Callable[[], None],
    ) -> None:
        """
        Args:
            host: of the token endpoint, for people.
            tell: called when those who wait for the attempt can go on before it ends.
        """
        #: Why the latest login is in this process's memory alone; empty as it should be.
        self.unsaved = ""
        self._store = store
        self._judge = judge
        self._cli_lock = cli_lock
        self._clock = clock
        self._pace = pace
        self._host = host
        self._sleep = sleep
        self._checkpoint = checkpoint
        self._is_draining = is_draining
        self._tell = tell

    def keep(self, step: Step, answer: TokenAnswer) -> tuple[Outcome, str]:
        """Make the answer durable: journal first, then the shared file, unless it moved on."""
        received = self._received(step, answer)
        self._judge.deadlines = {
            received.login.access_token: answer.sent_boottime_s + answer.life_s
        }
        kept = Journal(
            received=received,
            tombstones=step.journal.tombstones,
            forced_at_ms=(
                int(self._clock.now() * 1000) if step.forced else step.journal.forced_at_ms
            ),
            spent=step.journal.spent,
        )
        if fingerprint(received.login.refresh_token) != step.fp:
            kept = kept.with_spent(step.fp, received.at_ms)
        # From here on this process knows it, whatever happens to the disk.
        self._store.held = received
        try:
            step.ours.publish(journal.render(kept))
        except OSError as error:
            if not step.ours.published and not self._rescue(step, kept, error):
                return Outcome.FAILED, "the new login could not be written before the stop"
        self._warn(step, answer)
        self._checkpoint("journaled")
        try:
            return self._publish(step, received, kept)
        except OSError as error:
            # The journal has it: all of us use it from there, and the next attempt publishes it.
            self._judge.read_only = error.strerror or type(error).__name__
            self._judge.hold_off(
                fingerprint(received.login.refresh_token), self._judge.pause_s(step.snapshot)
            )
            where = self._store.paths.document
            return (
                Outcome.OK,
                f"in the journal only, {where} cannot be written ({self._judge.read_only})",
            )
        finally:
            self._store.held = None

    def _warn(self, step: Step, answer: TokenAnswer) -> None:
        if answer.expires_in_s is None:
            log.warning(
                "the login service did not say how long its token is good, taken to be %.0f s "
                "attempt=%s",
                answer.life_s,
                step.number,
            )
        if answer.clock_skew_s is not None:
            log.warning(
                "the clock of %s differs from this machine's by %.0f s attempt=%s",
                self._host,
                answer.clock_skew_s,
                step.number,
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

    def _publish(self, step: Step, received: Received, kept: Journal) -> tuple[Outcome, str]:
        """Compare and swap: the CLI's login takes no lock, and a login of somebody wins."""
        try:
            there = self._store.reload().reading.value
        except Unusable:
            there = None  # torn by somebody in place; ours is whole
        if there is not None and fingerprint(there.refresh_token) not in (
            step.fp,
            fingerprint(received.login.refresh_token),
        ):
            # Superseded for good: it must not come back when that login is deleted some day.
            with suppress(OSError):  # theirs wins all the same
                self._store.write_journal(replace(kept, received=None))
            return Outcome.ADOPTED, "somebody logged in meanwhile, and their login is used"
        try:
            step.shared.publish(render(received.login.raw))
        except OSError:
            if not step.shared.published:
                raise
        self._checkpoint("published")
        with suppress(OSError):  # without it the next reader compares the two, and finds the same
            self._store.write_journal(replace(kept, received=replace(received, published=True)))
        self._checkpoint("finished")
        left_s = received.login.expires_at_ms / 1000 - self._clock.now()
        return Outcome.OK, f"valid for {left_s:.0f} s"

    def _rescue(self, step: Step, kept: Journal, error: OSError) -> bool:
        """The new login exists in memory alone: serve it, and try until the journal takes it.

        Our lock stays held, so that no other worker spends the old token, which is dead; that of
        qwen-code is let go, because its heartbeat must not keep a CLI out for hours.

        Returns:
            False if the process stops before it worked.
        """
        self.unsaved = error.strerror or type(error).__name__
        log.error(
            "the new login cannot be written, keep this process alive! login=%s attempt=%s: %s",
            self._store.shown,
            step.number,
            self.unsaved,
        )
        self._cli_lock.release()
        self._tell()  # they can go on: the new token is there
        while True:
            last_try = self._is_draining()
            with suppress(OSError):
                if not step.ours.published:
                    step.ours.publish(journal.render(kept))
                break
            with suppress(OSError):  # where the room that was reserved went bad
                self._store.write_journal(kept)
                break
            if last_try:
                return False
            self._sleep(self._pace.rescue_s)
        self.unsaved = ""
        log.warning(
            "the new login is written now login=%s attempt=%s", self._store.shown, step.number
        )
        return True
