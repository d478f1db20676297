"""Logins for tests, with as much or as little of the world around them as a test needs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.login_store import LoginPaths, LoginStore
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.clock import FakeClock
from tests.kit.qwen_home import NOWHERE, Home

SHOWN = "~/.qwen/oauth_creds.json"


def login_of(
    home: Home,
    clock: Clock,
    origin: str = NOWHERE,
    *,
    path: Path | None = None,
    initial: CredentialDocument | None = None,
    fallback_base_url: str = "",
    sleep: Callable[[float], None] = lambda seconds: None,
    **more: Any,
) -> OAuthLogin:
    """A login as discovery makes it. Each one stands for another process, but for the locks."""
    paths = LoginPaths.beside(path or home.qwen / "oauth_creds.json")
    store = LoginStore(paths, clock, shown=SHOWN, initial=initial, sleep=sleep)
    # Without a share of the windows, so that their limits are exact.
    more = {"jitter": lambda: 0.0, "sleep": sleep, **more}
    boottime = more.get("boottime", clock.monotonic)
    endpoint = TokenEndpoint(origin, clock=clock, boottime=boottime)
    refresher = Refresher(store, endpoint, clock, **{"boottime": boottime, **more})
    return OAuthLogin(store, refresher, fallback_base_url=fallback_base_url)


class World:
    """A home, a clock, and a sandbox with one login of which the home has the tokens."""

    def __init__(self, home: Home, clock: FakeClock, sandbox: Sandbox) -> None:
        self.home = home
        self.clock = clock
        self.sandbox = sandbox
        self.path = home.qwen / "oauth_creds.json"
        self.slept_s: list[float] = []

    def seed(self, left_s: float, **changes: Any) -> dict[str, Any]:
        """Log in: a file whose access token has that many seconds left."""
        answer = self.sandbox.issue()
        content = {
            "access_token": answer["access_token"],
            "token_type": "Bearer",
            "refresh_token": answer["refresh_token"],
            "resource_url": self.sandbox.origin,
            "expiry_date": int((self.clock.now() + left_s) * 1000),
            **changes,
        }
        self.home.write(".qwen/oauth_creds.json", content)
        return content

    def login(self, **more: Any) -> OAuthLogin:
        """One more process that uses the login."""
        more.setdefault("sleep", self.slept_s.append)
        return login_of(self.home, self.clock, self.sandbox.origin, **more)

    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def journal(self) -> dict[str, Any]:
        path = self.home.qwen / ".qwen-proxy/journal.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def faults(self, spec: str) -> None:
        """What the token endpoint does from now on."""
        self.sandbox.control(faults={"token": spec})

    @property
    def sent(self) -> int:
        """Requests to the token endpoint so far."""
        return sum(each.route == "token" for each in self.sandbox.requests)

    @property
    def oauth(self) -> dict[str, Any]:
        found: dict[str, Any] = self.sandbox.state()["oauth"]
        return found


def settle(login: OAuthLogin, timeout_s: float = 10.0) -> None:
    """Wait for the attempt, and for what is written beside it, if there is any under way."""
    running = login.refresher._state.running
    assert running is None or running.over.wait(timeout_s)
    end_s = time.monotonic() + timeout_s
    while login.refresher._backing_up or login.refresher._noting:
        assert time.monotonic() < end_s
        time.sleep(0.001)


def shuffled(value: dict[str, Any]) -> dict[str, Any]:
    """The same members in another order."""
    names = list(value)
    random.Random(7).shuffle(names)
    return {name: value[name] for name in names}
