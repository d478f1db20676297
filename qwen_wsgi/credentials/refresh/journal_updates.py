"""Updates a login's journal beside its refresh, under our own lock alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import Closed, Journal, Received, fingerprint
from qwen_wsgi.credentials.files.login_store import Snapshot
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState
from qwen_wsgi.credentials.refresh.timing import PROXY_LOCK_S

log = logging.getLogger(__name__)

#: A request does not wait longer for our lock to record what the API said.
_RECORD_S: Final = 2.0


class JournalUpdates:
    """Backs up a login of another program, records what the API says of the login's token, and
    removes the journal."""

    def __init__(self, context: RefreshContext, state: RefreshState) -> None:
        self._context = context
        self._state = state
        self._store = context.store
        #: Fingerprint of a login whose backup failed, and until when (monotonic) that is accepted.
        self._failed = ("", 0.0)

    def is_backup_due(self, snapshot: Snapshot) -> bool:
        """Whether the shared file holds a login of another program that the journal lacks."""
        login, received = snapshot.newest.login, snapshot.journal.received
        if login is None or not login.refresh_token or snapshot.newest.source != "shared":
            return False
        if (
            snapshot.reading.value is not login
            or snapshot.reading.identity is None
            or self._state.read_only
        ):
            return False
        if received is not None and received.login.refresh_token == login.refresh_token:
            return False
        fp = fingerprint(login.refresh_token)
        failed_fp, until_s = self._failed
        if fp == failed_fp and self._context.clock.monotonic() < until_s:
            return False
        return fp not in snapshot.journal.tombstones

    def back_up(self) -> None:
        """Write that login into the journal, if it is still there."""
        fp = ""
        try:
            durable.make_directory(self._store.paths.proxy_lock.parent)
            if not self._acquire():
                return
            try:
                snapshot = self._store.reload()
                login = snapshot.newest.login
                if login is None or snapshot.newest.source != "shared":
                    return
                fp = fingerprint(login.refresh_token)
                at_ms = int(self._context.clock.now() * 1000)
                seen = Received("", login, at_ms, None, forced=False, published=True)
                self._store.write_journal(replace(snapshot.journal, received=seen, line=()))
            finally:
                self._context.proxy_lock.release()
        except (OSError, Unusable) as error:
            # Not reported as a state: the next refresh finds out what is wrong, and reports it.
            log.debug(
                "login could not be backed up to the journal login=%s: %s", self._store.shown, error
            )
            again_s = self._context.clock.monotonic() + self._context.timing.retry_s
            self._failed = fp, again_s

    def close_tier(self, login: CredentialDocument) -> None:
        """Record, for all workers, that the API refuses even a token which a refresh brought."""
        closed = Closed(fingerprint(login.access_token), int(self._context.clock.now() * 1000))
        before = self._state.closed or self._store.snapshot().journal.closed
        self._set_closed(login, closed)
        if before is None or before.fp != closed.fp or not before.at_ms:
            log.warning(
                "login is refused by the API even after a refresh; it is tried again now and then "
                "login=%s",
                self._store.shown,
            )

    def give_another_chance(self, login: CredentialDocument) -> None:
        """Record that a closed login may not be closed any more. If the API refuses it again, it is
        closed again at once."""
        self._set_closed(login, Closed(fingerprint(login.access_token), 0))

    def _set_closed(self, login: CredentialDocument, closed: Closed) -> None:
        self._state.closed = closed
        if self._update(login, lambda journal: replace(journal, closed=closed)):
            self._state.closed = None

    def note_answered(self, login: CredentialDocument) -> None:
        """Record, for all workers, that the API accepts a token that was in doubt."""
        self._update(login, lambda journal: _answered(journal, login))

    def is_doubted(self, snapshot: Snapshot) -> bool:
        """Whether other workers may doubt the login's access token, and have to hear that the API
        accepts it."""
        login, received, closed = (
            snapshot.newest.login,
            snapshot.journal.received,
            snapshot.journal.closed,
        )
        if login is None:
            return False
        if closed is not None and closed.fp == fingerprint(login.access_token):
            return True
        return (
            received is not None
            and received.forced
            and not received.answered
            and received.login.access_token == login.access_token
        )

    def _update(self, login: CredentialDocument, change: Callable[[Journal], Journal]) -> bool:
        """Change the journal, if it is still about this access token; whether all workers know.

        Called by requests: when the lock is held longer, the next one records it.
        """
        with suppress(OSError, Unusable):
            if not self._acquire():
                return False
            try:
                snapshot = self._store.reload()
                newest = snapshot.newest.login
                if newest is not None and newest.access_token == login.access_token:
                    changed = change(snapshot.journal)
                    if changed != snapshot.journal:
                        self._store.write_journal(changed)
                return True
            finally:
                self._context.proxy_lock.release()
        return False

    def forget(self) -> bool:
        """Remove the journal, for a deliberate logout; False if the lock was not free in time.

        A login that is shared is forgotten on all boxes; it may be their only copy, so the journal
        says that it is gone.

        Raises:
            OSError: it cannot be removed.
        """
        lock, shared = self._context.proxy_lock, self._context.shared
        if not lock.acquire(PROXY_LOCK_S):
            return False
        try:
            if shared is not None:
                shared.forget()
            else:
                with suppress(FileNotFoundError):
                    os.unlink(self._store.paths.journal)
        finally:
            lock.release()
        if shared is not None:
            shared.sync()
        return True

    def _acquire(self) -> bool:
        return self._context.proxy_lock.acquire(_RECORD_S, give_up=lambda: self._state.draining)


def _answered(journal: Journal, login: CredentialDocument) -> Journal:
    received = journal.received
    if received is not None and received.login.access_token == login.access_token:
        received = replace(received, answered=True)
    return replace(journal, received=received, closed=None)
