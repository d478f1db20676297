"""What goes into a login's journal beside its renewal, under our own lock alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import Received, fingerprint
from qwen_wsgi.credentials.files.login_store import LoginStore, Snapshot
from qwen_wsgi.credentials.files.watched import Unusable
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.refresh.judge import RefreshPolicy
from qwen_wsgi.credentials.refresh.pace import PROXY_LOCK_S

log = logging.getLogger(__name__)

#: A request does not wait longer for our lock to note that its account is closed.
_NOTE_S: Final = 2.0


class JournalUpdates:
    """Notes a login of somebody else, or a closed account; and forgets it all."""

    def __init__(
        self,
        store: LoginStore,
        judge: RefreshPolicy,
        proxy_lock: ProxyLock,
        clock: Clock,
        *,
        is_draining: Callable[[], bool],
    ) -> None:
        self._store = store
        self._judge = judge
        self._proxy_lock = proxy_lock
        self._clock = clock
        self._is_draining = is_draining
        #: Fingerprint of a login that could not be noted.
        self._noted = ""

    def is_lacking(self, snapshot: Snapshot) -> bool:
        """Whether the shared file holds a login of somebody else that the journal lacks."""
        login, received = snapshot.newest.login, snapshot.journal.received
        if login is None or not login.refresh_token or snapshot.newest.source != "shared":
            return False
        if (
            snapshot.reading.value is not login
            or snapshot.reading.identity is None
            or self._judge.read_only
        ):
            return False
        if received is not None and received.login.refresh_token == login.refresh_token:
            return False
        fp = fingerprint(login.refresh_token)
        return fp not in snapshot.journal.tombstones and fp != self._noted

    def write(self) -> None:
        """Write that login into the journal, if it is still there."""
        fp = ""
        try:
            durable.make_directory(self._store.paths.proxy_lock.parent)
            if not self._proxy_lock.acquire(_NOTE_S, give_up=self._is_draining):
                return
            try:
                snapshot = self._store.reload()
                login = snapshot.newest.login
                if login is None or snapshot.newest.source != "shared":
                    return
                fp = fingerprint(login.refresh_token)
                at_ms = int(self._clock.now() * 1000)
                seen = Received("", login, at_ms, None, forced=False, published=True)
                self._store.write_journal(replace(snapshot.journal, received=seen))
            finally:
                self._proxy_lock.release()
        except (OSError, Unusable) as error:
            # Not worth a state of its own: the next renewal finds out what is wrong, and says it.
            log.debug("login could not be noted login=%s: %s", self._store.shown, error)
            self._noted = fp

    def close_tier(self, login: CredentialDocument) -> None:
        """Note, for all workers, that a token which a refresh brought is refused all the same."""
        closed = self._judge.closed = fingerprint(login.access_token)
        if self._store.snapshot().journal.closed == closed:
            return
        # Called by a request: whoever has the lock longer than this leaves it to the next one.
        with suppress(OSError, Unusable):
            if not self._proxy_lock.acquire(_NOTE_S, give_up=self._is_draining):
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
                        "login refused by the API after a refresh, too; no more of them login=%s",
                        self._store.shown,
                    )
            finally:
                self._proxy_lock.release()

    def forget(self) -> bool:
        """Remove the journal, for a deliberate logout; False if the lock was not to be had.

        Raises:
            OSError: it cannot be removed.
        """
        if not self._proxy_lock.acquire(PROXY_LOCK_S):
            return False
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._store.paths.journal)
        finally:
            self._proxy_lock.release()
        return True
