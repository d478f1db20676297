"""Boxes that share a login through a fake Redis, with files of their own and clocks that a test
moves; and a login service that notices a refresh token that is sent twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from qwen_wsgi.credentials.files import document, durable
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import MAX_LINE, Intent, Received, fingerprint
from qwen_wsgi.credentials.files.login_store import LoginPaths, LoginStore, render
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.credentials.shared.shared_login import SharedLogin
from tests.fakes.board import FakeBoard, FakeRedis
from tests.fakes.clock import FakeClock


class LoginService:
    """Counts how often each refresh token was sent, and by whom."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.sent: Counter[str] = Counter()
        self.senders: dict[str, set[str]] = {}
        self._issued = 0

    def issue(self) -> CredentialDocument:
        """A login of a person, or the successor of one."""
        self._issued += 1
        raw = {
            "access_token": f"access-{self._issued}",
            "refresh_token": f"refresh-{self._issued}",
            "token_type": "Bearer",
            "expiry_date": int(self._clock.now() * 1000) + 3_600_000,
        }
        return document.parse(json.dumps(raw).encode(), None)

    def spend(self, refresh_token: str, box: str) -> CredentialDocument:
        self.sent[refresh_token] += 1
        self.senders.setdefault(refresh_token, set()).add(box)
        return self.issue()


class SharingBox:
    """One box with two workers: one that renews, and one that only looks. It may be killed and
    started again."""

    def __init__(
        self, id: str, directory: Path, redis: FakeRedis, clock: FakeClock, *, own_file: bool
    ) -> None:
        self.board = FakeBoard(redis, id)
        self._directory = directory
        self._clock = clock
        self._own_file = own_file
        #: The renewal under way: the token that was sent, and its successor.
        self.open: tuple[CredentialDocument, CredentialDocument] | None = None
        self.start()

    def start(self) -> None:
        """A new process: it knows what is on disk."""
        place = self._directory / (".qwen" if self._own_file else "logins")
        place.mkdir(parents=True, exist_ok=True)
        self.paths = LoginPaths.beside(place / "oauth_creds.json")
        self.store, self.shared = self._process()
        _, self._second = self._process()

    def _process(self) -> tuple[LoginStore, SharedLogin]:
        store = LoginStore(self.paths, self._clock, shown="login")
        shared = SharedLogin(
            "oauth",
            store,
            self.board,
            self._directory / "logins",
            self._clock,
            own_file=self._own_file,
            copy=not self._own_file,
            sleep=self._clock.advance,
        )
        return store, shared

    @property
    def login(self) -> CredentialDocument | None:
        return self.store.snapshot().newest.login

    @property
    def token(self) -> str:
        return "" if self.login is None else self.login.refresh_token

    def log_in(self, login: CredentialDocument) -> None:
        """A person logs in here: without any lock, as qwen-code does."""
        durable.replace_file(self.paths.document, render(login.raw))

    def look(self) -> None:
        """What maintenance does every few seconds; another worker does it while one renews."""
        (self.shared if self.open is None else self._second).sync()

    def begin(self, service: LoginService) -> str:
        """Begin to renew, up to the moment at which the token is sent; why not, or ""."""
        assert self.open is None
        durable.make_directory(self.paths.proxy_lock.parent)
        lock = ProxyLock(self.paths.proxy_lock)
        assert lock.acquire(0.0)
        try:
            if why := self.shared.enter():
                return why
            snapshot = self.store.reload()
            login, why = snapshot.newest.login, "there is none"
            if login is not None:
                fp = fingerprint(login.refresh_token)
                at_ms = int(self._clock.now() * 1000)
                intent = Intent(fp, 1, at_ms, "attempt")
                self.store.write_journal(replace(snapshot.journal, intent=intent))
                if why := self.shared.may_send(fp):
                    self.store.write_journal(snapshot.journal)
            if why or login is None:
                self.shared.leave()
                return why
            self.open = (login, service.spend(login.refresh_token, self.board.box))
            return ""
        finally:
            lock.release()

    def end(self) -> None:
        """The answer arrives: journal, file, the others."""
        assert self.open is not None
        (before, after), self.open = self.open, None
        fp = fingerprint(before.refresh_token)
        journal = self.store.reload().journal
        at_ms = int(self._clock.now() * 1000)
        received = Received(fp, after, at_ms, 3_600_000, forced=False, published=False)
        line = (*journal.line, fp)[-MAX_LINE:]
        new = journal.with_spent(fp, at_ms)
        new = replace(new, received=received, line=line, intent=None)
        self.store.write_journal(new)
        self.shared.publish()
        self.shared.leave()

    def die(self) -> None:
        """Killed; what was sent is lost with its answer."""
        self.open = None
        self.shared.leave()
        self.start()
