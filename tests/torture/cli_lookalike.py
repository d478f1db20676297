"""A program that shares its login as qwen-code does, with all its faults; for the torture.

Sessions of it run one after another in this process: each begins without a memory, calls the API
now and then, renews the login in its last seconds or when the API refuses it, and removes the lock
when it ends, whoever's it is. Two generations: `old` (up to 0.15.10) and `new` (0.24.4).

    python -m tests.torture.cli_lookalike DIRECTORY ORIGIN old|new SCALE SECONDS
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from tests.fakes.cli_lock import CliLock

CLIENT_ID: Final = "f0304373b74a44d2b584a3fb70ca9e56"
#: Seconds, before they are divided by the scale. Against tokens that live for minutes instead of
#: hours, the last 30 s of a token are 10 s here: with the product's windows in proportion.
STALE_S: Final = {"old": 10.0, "new": 35.0}
HTTP_TIMEOUT_S: Final = {"old": 600.0, "new": 30.0}
REFRESH_LEFT_S: Final = 10.0
LOOK_S: Final = 5.0
#: How long a session lasts, and how long it thinks between two calls.
SESSION_S: Final = (10.0, 60.0)
THINK_S: Final = (0.5, 4.0)


class _CountedLock(CliLock):
    def __init__(self, path: Path, seen: Counter[str], *, stale_s: float, scale: float) -> None:
        super().__init__(path, stale_s=stale_s, scale=scale)
        self._seen = seen

    def taken_over(self, since_ns: int) -> None:
        self._seen["lock-taken-over"] += 1


class Session:
    """One run of the program."""

    def __init__(
        self, directory: Path, origin: str, generation: str, scale: float, seen: Counter[str]
    ) -> None:
        self.file = directory / "oauth_creds.json"
        lock = directory / "oauth_creds.lock"
        self.lock = _CountedLock(lock, seen, stale_s=STALE_S[generation], scale=scale)
        self.host = origin.removeprefix("http://")
        self.scale = scale
        # Not less: a busy machine must not make it lose an answer.
        self.timeout_s = max(10.0, HTTP_TIMEOUT_S[generation] / scale)
        self.seen = seen
        self.memory: dict[str, Any] | None = None
        self.mtime_ms = 0.0
        self.looked_s = float("-inf")

    def run(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        try:
            while time.monotonic() < end_s:
                self.call()
                time.sleep(random.uniform(*THINK_S) / self.scale)
        finally:
            self.remove_lock("lock-removed-at-exit")

    def call(self) -> None:
        token = self.token(force=False)
        if token is not None and self.ask(token) == 401:
            token = self.token(force=True)
            if token is not None:
                self.ask(token)

    def ask(self, token: str) -> int:
        body = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        status, _ = self.post("/v1/chat/completions", json.dumps(body), headers)
        self.seen[f"call-{status}"] += 1
        return status

    def post(self, path: str, body: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=self.timeout_s)
        try:
            connection.request("POST", path, body, {"User-Agent": "node", **headers})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    # The token manager.

    def token(self, *, force: bool) -> str | None:
        self.look(at_once=False)
        if not force and self.valid():
            assert self.memory
            return str(self.memory["access_token"])
        if self.memory is None:
            return None
        if not self.lock.acquire():
            self.seen["lock-timeout"] += 1
            return None
        try:
            self.look(at_once=True)
            if self.memory is not None and (force or not self.valid()):
                self.renew(str(self.memory["refresh_token"]))
        finally:
            self.remove_lock("")
        return None if self.memory is None else str(self.memory["access_token"])

    def valid(self) -> bool:
        if self.memory is None:
            return False
        left_s = self.memory["expiry_date"] / 1000 - time.time()
        return bool(left_s > REFRESH_LEFT_S / self.scale)

    def look(self, *, at_once: bool) -> None:
        """Read the file if its mtime has grown; a file that is gone leaves the memory alone."""
        now_s = time.monotonic()
        if not at_once and now_s - self.looked_s < LOOK_S / self.scale:
            return
        self.looked_s = now_s
        try:
            mtime_ms = self.file.stat().st_mtime_ns // 1_000_000
            if mtime_ms <= self.mtime_ms:
                return
            content = self.file.read_bytes()
        except FileNotFoundError:
            self.mtime_ms = 0
            return
        self.mtime_ms = mtime_ms
        self.memory = validated(content)
        if self.memory is None:
            self.seen["invalid-file"] += 1

    def renew(self, refresh_token: str) -> None:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": CLIENT_ID,
        }
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        status, body = self.post("/api/v1/oauth2/token", urlencode(form), kind)
        if status in (400, 401):
            # Whatever is there by now.
            with suppress(FileNotFoundError):
                self.file.unlink()
                self.seen["file-deleted"] += 1
            self.memory, self.mtime_ms = None, 0
            return
        if status != 200:
            return
        answer = json.loads(body)
        self.memory = {
            "access_token": answer["access_token"],
            "token_type": answer["token_type"],
            "refresh_token": answer.get("refresh_token", refresh_token),
            "resource_url": answer.get("resource_url"),
            "expiry_date": int((time.time() + answer["expires_in"]) * 1000),
        }
        aside = self.file.with_name(f"{self.file.name}.tmp.{uuid.uuid4()}")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w") as file:
            json.dump(self.memory, file, indent=2)
        aside.rename(self.file)
        with suppress(FileNotFoundError):
            self.mtime_ms = self.file.stat().st_mtime_ns // 1_000_000

    def remove_lock(self, cause: str) -> None:
        with suppress(FileNotFoundError):
            theirs = self.lock.path.read_bytes()
            self.lock.path.unlink()
            if cause and theirs.startswith(b"qwen-proxy"):
                self.seen[cause] += 1
            elif cause:
                self.seen[f"{cause}-of-another"] += 1


def validated(content: bytes) -> dict[str, Any] | None:
    """The file's login by the program's own rules."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    for name in ("access_token", "refresh_token", "token_type"):
        if not isinstance(found.get(name), str) or not found[name]:
            return None
    expiry = found.get("expiry_date")
    if isinstance(expiry, bool) or not isinstance(expiry, int | float) or not expiry:
        return None
    return found


def main() -> None:
    directory, origin, generation, scale, seconds = sys.argv[1:]
    seen: Counter[str] = Counter()
    end_s = time.monotonic() + float(seconds)
    while (left_s := end_s - time.monotonic()) > 0:
        session = Session(Path(directory), origin, generation, float(scale), seen)
        session.run(min(left_s, random.uniform(*SESSION_S) / float(scale)))
        seen["sessions"] += 1
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
