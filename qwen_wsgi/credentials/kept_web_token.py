"""The operator's web token as this proxy has renewed it: a file that all workers read."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.credentials.files.durable import replace_file
from qwen_wsgi.credentials.locks.proxy_lock import ProxyLock
from qwen_wsgi.protocol.web.token import MOST_PACKED, BadWebToken, WebToken, parse
from qwen_wsgi.redaction import DISCOVERED

#: In the state directory.
FILE: Final = "web-token.json"
_MOST_BYTES: Final = MOST_PACKED + 4096


@dataclass(frozen=True)
class Kept:
    """What is known of renewals of one configured token.

    Attributes:
        token: the newest one, compressed; "" while none was renewed.
        tried_at: when a renewal was tried last, seconds since 1970.
        problem: why that failed; "" if it did not.
    """

    token: str = ""
    tried_at: float = 0.0
    problem: str = ""


class KeptWebToken:
    """The file. What it keeps of another configured token than the present one does not count, so
    that a new QWEN_WEB_TOKEN is used at once.

    Args:
        directory: the state directory; None keeps it in this process.
    """

    def __init__(self, directory: Path | None, configured: WebToken) -> None:
        self._path = None if directory is None else directory / FILE
        self._configured = configured
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._kept = Kept()
        self._token = configured

    @property
    def token(self) -> WebToken:
        """The newest token: the renewed one, else the configured one."""
        self.read()
        return self._token

    def read(self) -> Kept:
        """What the file says now; costs one `stat` while it does not change."""
        if self._path is None:
            return self._kept
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        with self._lock:
            if seen != self._seen:
                self._seen = seen
                self._take(self._read() if seen is not None else Kept())
            return self._kept

    def write(self, kept: Kept) -> None:
        """Replace the file: for its owner alone (0600), in one step.

        Raises:
            OSError: it could not be written; then this process knows it alone.
        """
        with self._lock:
            self._take(kept)
        if self._path is not None:
            value = {"version": 1, "of": self._configured.digest, **asdict(kept)}
            replace_file(self._path, json.dumps(value).encode())
            self.read()

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether this process may renew it now: one at a time does, of all workers.

        Raises:
            OSError: the file cannot be locked.
        """
        if self._path is None:
            yield True
            return
        lock = ProxyLock(self._path.with_suffix(".lock"))
        if not lock.acquire(0):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _take(self, kept: Kept) -> None:
        self._kept = kept
        self._token = self._configured
        if kept.token:
            try:
                self._token = parse(kept.token)
                DISCOVERED.add(self._token.value)
            except BadWebToken:
                self._kept = Kept()

    def _read(self) -> Kept:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                value: Any = json.loads(file.read(_MOST_BYTES + 1)[:_MOST_BYTES])
        except (OSError, ValueError, RecursionError):
            return Kept()
        if not isinstance(value, dict) or value.get("of") != self._configured.digest:
            return Kept()
        token, tried, problem = (value.get(name) for name in ("token", "tried_at", "problem"))
        return Kept(
            token if isinstance(token, str) else "",
            float(tried) if isinstance(tried, int | float) else 0.0,
            problem if isinstance(problem, str) else "",
        )
