"""Updates a login's journal beside its refresh, under our own lock alone."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import replace
from typing import Final

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import Received, fingerprint
from qwen_wsgi.credentials.files.login_store import Snapshot
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.refresh.context import RefreshContext, RefreshState
from qwen_wsgi.credentials.refresh.timing import PROXY_LOCK_S

log = logging.getLogger(__name__)

#: A request does not wait longer for our lock to record that its account is closed.
_RECORD_S: Final = 2.0


class JournalUpdates:
    """Backs up a login of another program, records a closed account, and removes the journal."""

    def __init__(self, context: RefreshContext, state: RefreshState) -> None:
        self._context = context
        self._state = state
        self._store = context.store
        #: Fingerprint of a login whose backup failed, and until when (monotonic) it is left at that.
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
                self._store.write_journal(replace(snapshot.journal, received=seen))
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
        closed = self._state.closed = fingerprint(login.access_token)
        if self._store.snapshot().journal.closed == closed:
            return
        # Called by a request: when the lock is held longer, the next request records it.
        with suppress(OSError, Unusable):
            if not self._acquire():
                return
            try:
                snapshot = self._store.reload()
                newest = snapshot.newest.login
                if (
                    newest is not None
                    and newest.access_token == login.access_token
                    and snapshot.journal.closed != closed
                ):
                    self._store.write_journal(replace(snapshot.journal, closed=closed))
                    log.warning(
                        "login is refused by the API even after a refresh; it is not refreshed "
                        "any more login=%s",
                        self._store.shown,
                    )
            finally:
                self._context.proxy_lock.release()

    def forget(self) -> bool:
        """Remove the journal, for a deliberate logout; False if the lock was not free in time.

        Raises:
            OSError: it cannot be removed.
        """
        lock = self._context.proxy_lock
        if not lock.acquire(PROXY_LOCK_S):
            return False
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._store.paths.journal)
        finally:
            lock.release()
        return True

    def _acquire(self) -> bool:
        return self._context.proxy_lock.acquire(_RECORD_S, give_up=lambda: self._state.draining)
