"""Reads and writes one login: qwen-code's file, and our journal beside it."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.files import document, durable, journal
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.credentials.files.journal import Journal, Newest, Received, fingerprint
from qwen_wsgi.credentials.files.watched import (
    FileIdentity,
    Reading,
    Unusable,
    WatchedFile,
)

log = logging.getLogger(__name__)

#: A file that is being written in place (by an old CLI) is whole again within this time.
_TORN_TRIES: Final = 5
_TORN_PAUSE_S: Final = 0.1


@dataclass(frozen=True)
class LoginPaths:
    """The files of one login. Keyed on the credential file and not on the service: two services, or
    an owner's `creds refresh`, must use the same lock."""

    document: Path
    cli_lock: Path
    proxy_lock: Path
    journal: Path

    @classmethod
    def beside(cls, path: Path) -> LoginPaths:
        """The paths for a credential file: `oauth_creds.json`, or `oauth_creds_<name>.json`."""
        suffix = path.stem.removeprefix("oauth_creds")
        ours = path.parent / ".qwen-proxy"
        return cls(
            document=path,
            cli_lock=path.with_suffix(".lock"),
            proxy_lock=ours / f"refresh{suffix}.lock",
            journal=ours / f"journal{suffix}.json",
        )


#: An extra member of the document that renews a login from the environment: the fingerprint of
#: the variable's value. The document counts only for the very value that it began with.
SOURCE_KEY: Final = "qwen_proxy_source"


def from_environment(text: str) -> CredentialDocument:
    """Parse the login in `QWEN_CLI_AUTH`.

    Raises:
        Unusable: it is not a login.
    """
    login = document.parse(text.encode(errors="replace"), None)
    raw = {**login.raw, SOURCE_KEY: fingerprint(text.strip())}
    return replace(login, raw=MappingProxyType(raw))


@dataclass(frozen=True)
class Snapshot:
    """The state of a login's files at one moment: the login that counts, and the journal.

    Attributes:
        reading: of the shared file, for its problem and remedy.
        lifetime_ms: of the login's access token; None unless we fetched it.
    """

    newest: Newest
    journal: Journal
    reading: Reading[CredentialDocument]
    lifetime_ms: int | None

    @property
    def is_gone(self) -> bool:
        """Whether the login is in the journal, and there is no shared file."""
        reading = self.reading
        return self.newest.source == "journal" and not (reading.value or reading.problem)


class LoginStore:
    """Reads a login cheaply, writes it durably.

    `snapshot` costs two `stat`s while nothing changes and returns the same object; it takes no lock
    and is safe for any number of greenlets and threads. Only the holder of both locks may write.

    Args:
        initial: the login while there is no file yet (`QWEN_CLI_AUTH`).
    """

    def __init__(
        self,
        paths: LoginPaths,
        clock: Clock,
        *,
        shown: str,
        initial: CredentialDocument | None = None,
        sleep: Callable[[float], None] = sleep,
    ) -> None:
        self.paths = paths
        self.shown = shown
        self._initial = initial
        self._sleep = sleep
        self._shared = WatchedFile(paths.document, self._parse_shared, clock, shown)
        self._journal = WatchedFile(paths.journal, journal.parse, clock, str(paths.journal))
        #: Fingerprint of the journal's refresh token if the shared file was seen with a later one.
        #: When that file is deleted, the journal's must not come back: it is spent.
        self._superseded = ""
        self._clock = clock
        self._gone_at_s: float | None = None
        #: A login that could not be written: only this process has it.
        self.held: Received | None = None
        self._seen: (
            tuple[Reading[CredentialDocument], Reading[Journal], Received | None, Snapshot] | None
        ) = None

    def snapshot(self) -> Snapshot:
        """Return the state of the files now."""
        held = self.held  # first: it is cleared only after the journal has the login
        shared, ours = self._shared.read(), self._journal.read()
        seen = self._seen
        if seen is not None and seen[0] is shared and seen[1] is ours and seen[2] is held:
            return seen[3]
        snapshot = self._snapshot_of(self._or_initial(shared), ours.value or Journal(), held)
        self._seen = (shared, ours, held, snapshot)
        if not snapshot.is_gone:
            self._gone_at_s = None
        elif self._gone_at_s is None:
            self._gone_at_s = self._clock.monotonic() - self._directory_age_s()
        return snapshot

    def gone_s(self) -> float:
        """For how long the shared file has been gone, at least; 0 while it is there.

        As `snapshot` saw it; for a process that started later, by the directory's date.
        """
        gone_at_s = self._gone_at_s
        return 0.0 if gone_at_s is None else self._clock.monotonic() - gone_at_s

    def _directory_age_s(self) -> float:
        try:
            changed_s = os.stat(self.paths.document.parent).st_mtime
        except OSError:
            return 0.0
        return max(0.0, self._clock.now() - changed_s)

    def watched(self) -> tuple[WatchedFile[Any], ...]:
        """The files that a login depends on: qwen-code's, and our journal."""
        return self._shared, self._journal

    def _snapshot_of(
        self, reading: Reading[CredentialDocument], ours: Journal, held: Received | None
    ) -> Snapshot:
        if held is not None:
            ours = replace(ours, received=held)
        if (received := ours.received) is not None:
            fp = fingerprint(received.login.refresh_token)
            if reading.value is None and fp == self._superseded:
                ours, received = replace(ours, received=None), None
        chosen = journal.newest(reading.value, ours)
        if chosen.source == "journal" and reading.value is None:
            # A file that a crash tore is written again; a deleted one is not, it may be a logout.
            torn = reading.problem.startswith(f"{document.NOT_JSON} ")
            chosen = chosen._replace(unpublished=torn)
        lifetime_ms = None
        if received is not None and chosen.login is not None:
            if chosen.login.access_token == received.login.access_token:
                lifetime_ms = received.lifetime_ms
            elif chosen.source == "shared" and chosen.login.refresh_token != (
                received.login.refresh_token
            ):
                self._superseded = fp
        return Snapshot(chosen, ours, reading, lifetime_ms)

    def _or_initial(self, reading: Reading[CredentialDocument]) -> Reading[CredentialDocument]:
        """The file's login, unless it renews another value of the environment's variable."""
        initial, found = self._initial, reading.value
        if initial is None:
            return reading
        if found is not None and found.raw.get(SOURCE_KEY) == initial.raw.get(SOURCE_KEY):
            return reading
        return Reading(reading.identity, initial)

    def reload(self) -> Snapshot:
        """Read the files now, whatever `stat` says.

        A file that stays torn (a crash in the middle of a write in place) counts as missing if the
        journal has a login; any other unusable file may belong to another program.

        Raises:
            Unusable: the file stays unusable for longer than a write takes.
            OSError: it cannot be read.
        """
        for attempt in range(_TORN_TRIES):
            held = self.held  # first, as in `snapshot`
            try:
                return self._snapshot_of(self._read_shared(), self._read_journal(), held)
            except Unusable as error:
                if attempt < _TORN_TRIES - 1:
                    self._sleep(_TORN_PAUSE_S)
                    continue
                ours = self._read_journal()
                if ours.received is None or not self._is_torn():
                    raise
                torn: Reading[CredentialDocument] = Reading(None, None, str(error), error.remedy)
                return self._snapshot_of(torn, ours, held)
        raise AssertionError("unreachable")

    def reserve(self, login: CredentialDocument) -> tuple[durable.Reservation, durable.Reservation]:
        """Reserve room on disk for the next login and its journal, before the old token is spent.

        Args:
            login: the login to replace; the next one is about as long.

        Raises:
            OSError: it cannot be reserved: read-only, no permission, disk full.
        """
        size = len(render(login.raw))
        shared = durable.reserve(self.paths.document, size)
        try:
            return shared, self._reserve_journal(size)
        except BaseException:
            shared.discard()
            raise

    def _reserve_journal(self, more: int) -> durable.Reservation:
        path = self.paths.journal
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = 0
        return durable.reserve(path, size + more)

    def sweep(self, *, alone: bool) -> None:
        """Remove the reservations that crashes left behind; see `durable.sweep`."""
        for directory in self._directories():
            durable.sweep(directory, now_s=self._clock.now(), alone=alone)

    def holds_left_overs(self) -> bool:
        """Whether there may be something to sweep."""
        return any(map(durable.holds_left_overs, self._directories()))

    def _directories(self) -> set[Path]:
        # Of the document's real file: there its reservation is made.
        real = Path(os.path.realpath(self.paths.document))
        return {real.parent, self.paths.document.parent, self.paths.journal.parent}

    def identity(self) -> FileIdentity | None:
        """Which version of the shared file there is now; None without one."""
        try:
            return FileIdentity.of(os.stat(self.paths.document))
        except OSError:
            return None

    def write_problem(self) -> WriteProblem | None:
        """Why a refresh could not replace the files, as far as the kernel tells beforehand; nothing
        is created."""
        paths = self.paths
        for path in (paths.document.parent, paths.journal.parent, paths.document, paths.proxy_lock):
            if path.exists() and not os.access(path, os.W_OK, effective_ids=True):
                return WriteProblem(errno.EACCES, f"{path.name}: no permission to write")
        with suppress(OSError):
            if os.statvfs(paths.document.parent).f_bavail == 0:
                return WriteProblem(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None

    def write_journal(self, value: Journal) -> None:
        """Replace the journal durably.

        Raises:
            OSError: it could not be written.
        """
        durable.replace_file(self.paths.journal, journal.render(value))

    def _parse_shared(self, content: bytes, identity: FileIdentity) -> CredentialDocument:
        return document.parse(content, identity)

    def _read_shared(self) -> Reading[CredentialDocument]:
        try:
            content = self.paths.document.read_bytes()
        except FileNotFoundError:
            return Reading(None, self._initial)
        return self._or_initial(Reading(None, document.parse(content, None)))

    def _read_journal(self) -> Journal:
        try:
            return journal.parse(self.paths.journal.read_bytes())
        except FileNotFoundError:
            return Journal()
        except Unusable as error:
            # Only damage from outside can do this: we replace it as a whole. Go on without it.
            log.warning(
                "journal is unusable, a new one is begun path=%s: %s", self.paths.journal, error
            )
            return Journal()

    def _is_torn(self) -> bool:
        """Whether the file is not even JSON; unusable JSON may be another program's new format."""
        try:
            json.loads(self.paths.document.read_bytes())
        except (OSError, ValueError, RecursionError):
            return True
        return False


def render(raw: Mapping[str, Any]) -> bytes:
    """Render a login document as qwen-code does: two spaces, no newline at the end."""
    try:
        return json.dumps(dict(raw), indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair in an unknown key
        return json.dumps(dict(raw), indent=2).encode()
