"""A process of ours with one login, which its starter leads by the hand; run by test_environment.

    python -m tests.processes.guided_user [ordinary]
    python -m tests.processes.guided_user cli [ordinary] ARGUMENT...

HOME and QWEN_OAUTH_BASE_URL say which login. The first reads lines from its input, each a JSON list
that names a method of `Guide` and its arguments, and answers each with a line of JSON. The second
is `qwen-proxy`. With `ordinary` neither is root.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_wsgi import settings
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.refresh.timing import RefreshTiming
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import CredentialError
from tests.kit.privileges import as_ordinary_user

#: Takes all the room that a disk has left.
FILLER = "filler"
#: Instead of the product's 5 s.
MAINTENANCE_S = 0.25


class MovedClock(SystemClock):
    """The machine's clocks, each moved by as much as the starter says."""

    def __init__(self) -> None:
        self.moved_s = {"wall": 0.0, "monotonic": 0.0, "boot": 0.0}

    def now(self) -> float:
        return time.time() + self.moved_s["wall"]

    def monotonic(self) -> float:
        return time.monotonic() + self.moved_s["monotonic"]

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self.moved_s["boot"]


class Guide:
    """What the starter can ask for."""

    def __init__(self) -> None:
        self._clock = clock = MovedClock()
        #: What happens at a checkpoint of a renewal.
        self._plans: dict[str, list[str]] = {}
        store = Discovery(settings.load(), clock).logins()[0].store
        self._directory = store.paths.document.parent
        self._refresher = Refresher(
            store,
            TokenEndpoint(settings.load().oauth_base_url, clock=clock, boottime=clock.boottime),
            clock,
            timing=replace(RefreshTiming(), rescue_s=0.2),
            checkpoint=self._pass,
            jitter=lambda: 0.0,
            boottime=clock.boottime,
        )
        self._login = OAuthLogin(store, self._refresher, fallback_base_url="")

    def move(self, seconds: dict[str, float]) -> None:
        """Move some of the clocks by so much."""
        for name, more_s in seconds.items():
            self._clock.moved_s[name] += more_s

    def current(self, callers: int) -> list[dict[str, str]]:
        """What so many calls get that come at the same time."""
        got: list[dict[str, str]] = []

        def call() -> None:
            try:
                got.append({"token": self._login.current().value})
            except CredentialError as error:
                got.append({"code": error.code, "remedy": error.remedy, "text": str(error)})

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return got

    def maintain(self) -> None:
        """What a worker does from time to time while nobody calls."""
        self._login.maintain()

    def rest(self) -> None:
        """Wait until nothing is under way."""
        for thread in threading.enumerate():
            if thread.name.startswith("qwen-login-"):
                thread.join(15)
                assert not thread.is_alive()

    def look(self) -> dict[str, Any]:
        """What there is to say about the login."""
        snapshot, status, last = (
            self._login.store.snapshot(),
            self._login.status(),
            self._refresher.last,
        )
        return {
            "state": self._refresher.token_state(snapshot).value,
            "ability": self._refresher.ability(snapshot).value,
            "source": snapshot.newest.source,
            "unsaved": self._refresher.unsaved,
            "detail": status.detail,
            "remedy": status.remedy,
            "outcome": last.outcome.value if last else None,
            "why": last.detail if last else None,
        }

    def plan(self, point: str, *deeds: str) -> None:
        """Do something when a renewal comes to a checkpoint: `kill`, `fill` or `spoil`."""
        self._plans[point] = list(deeds)

    def _pass(self, point: str) -> None:
        for deed in self._plans.pop(point, ()):
            getattr(self, f"_{deed}")()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _fill(self) -> None:
        fill(self._directory)

    def _spoil(self) -> None:
        """Free what was reserved: as on a file system that never overwrites in place."""
        for path in self._directory.rglob(".qwen-proxy-*"):
            os.truncate(path, 0)


def fill(directory: Path) -> None:
    """Fill the disk that a directory is on."""
    with (directory / FILLER).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(directory).f_bavail == 0


def brisk() -> Any:
    """The application for gunicorn, whose maintenance suits tokens that live for seconds."""
    from qwen_wsgi import app, services

    services.MAINTENANCE_S = MAINTENANCE_S  # type: ignore[misc]  # shorter than the product's
    return app.create_app()


def be_guided() -> None:
    """Do what the lines say."""
    guide = Guide()
    for line in sys.stdin:
        name, *rest = json.loads(line)
        print(json.dumps(getattr(guide, name)(*rest)), flush=True)


def main() -> int:
    is_cli, is_ordinary = "cli" in sys.argv[1:], "ordinary" in sys.argv[1:]
    # Who is not root may not be able to read root's Python: what is imported late, is so before.
    for codec in ("utf-8-sig", "idna", "latin-1", "ascii"):
        codecs.lookup(codec)
    if is_cli:
        from qwen_wsgi.cli import main as cli  # noqa: F401
    with as_ordinary_user(Path.home()) if is_ordinary else contextlib.nullcontext():
        if is_cli:
            return cli.main([each for each in sys.argv[1:] if each not in ("cli", "ordinary")])
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        be_guided()
    return 0


if __name__ == "__main__":
    sys.exit(main())
