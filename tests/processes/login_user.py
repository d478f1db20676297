"""Processes of ours that use one login; run by the tests of this directory.

python -m tests.processes.login_user attempt [kill-at=POINT] [full-at=POINT] [rejected]
python -m tests.processes.login_user storm GREENLETS [rejected] [again]
python -m tests.processes.login_user fork [gevent | late]
python -m tests.processes.login_user drain [gevent]
python -m tests.processes.login_user wait

HOME and QWEN_OAUTH_BASE_URL say which login. Each prints JSON lines.
"""

from __future__ import annotations

import sys

if {"storm", "wait", "gevent"} & set(sys.argv[1:]):
    # As in gunicorn.conf.py: before everything else.
    from gevent import monkey

    monkey.patch_all()

# ruff: noqa: E402
import json
import logging
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from typing import Any

from qwen_wsgi import settings
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.refresher import Refresher
from qwen_wsgi.credentials.refresh.timing import RefreshTiming
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import CredentialError


def tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def found() -> OAuthLogin:
    """The login, as a worker finds it."""
    login = Discovery(settings.load(), SystemClock()).logins()[0]
    assert login.refresher.context.boottime() > 0
    return login


def attempt(*options: str) -> None:
    """One attempt; it may be killed, or find the disk full, at a point."""
    chosen = dict(option.partition("=")[::2] for option in options)
    full = threading.Event()

    def checkpoint(name: str) -> None:
        if name == chosen.get("kill-at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name == chosen.get("full-at"):
            # Every write to a file fails from here on, also to one that is long enough.
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            full.set()

    login = found()
    timing = replace(RefreshTiming(), rescue_s=0.2)
    endpoint = TokenEndpoint(settings.load().oauth_base_url, clock=SystemClock())
    refresher = Refresher(
        login.store,
        endpoint,
        SystemClock(),
        timing=timing,
        checkpoint=checkpoint,
        jitter=lambda: 0.0,
    )
    login = OAuthLogin(login.store, refresher, fallback_base_url="")
    if "full-at" in chosen:
        refresher.start()
        assert full.wait(10)
        time.sleep(0.7)
        tell(token=login.current().value, unsaved=refresher.unsaved)
        if sys.stdin.readline() == "stop\n":
            tell(
                drained=refresher.drain(10), outcome=refresher.last and refresher.last.outcome.value
            )
            return
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        done = refresher.drain(10)
        tell(drained=done, unsaved=refresher.unsaved)
        return
    held = login.store.snapshot().newest.login
    rejected = held.access_token if held and "rejected" in chosen else None
    begun_s = time.monotonic()
    result = refresher.attempt(rejected=rejected)
    took_s = time.monotonic() - begun_s
    snapshot = login.store.snapshot()
    tell(
        outcome=result.outcome.value,
        detail=result.detail,
        took_s=took_s,
        state=refresher.token_state(snapshot).value,
        ability=refresher.ability(snapshot).value,
        token=snapshot.newest.login and snapshot.newest.login.access_token,
        source=snapshot.newest.source,
    )


def storm(greenlets: int, *options: str) -> None:
    """Many greenlets want the token at the same time, once the starter says so."""
    import gevent

    login = found()
    held = login.store.snapshot().newest.login
    rejected = held.access_token if held and "rejected" in options else None
    tokens: list[str] = []
    errors: list[str] = []

    def want() -> None:
        try:
            token = login.current(rejected=rejected)
            tokens.append(token.value)
            if "again" in options:
                login.current(rejected=token.value)
        except CredentialError as error:
            errors.append(error.code)

    tell(ready=True)
    line_from_starter()
    everybody = [gevent.spawn(want) for _ in range(greenlets)]
    gevent.joinall(everybody, timeout=30, raise_error=True)
    tell(tokens=tokens, errors=errors, late=sum(not each.dead for each in everybody))


def line_from_starter() -> None:
    """Wait for a line; with gevent in a real thread, as stdin would stop the hub."""
    if "gevent" not in sys.modules:
        sys.stdin.readline()
        return
    import gevent

    gevent.get_hub().threadpool.apply(sys.stdin.readline)


def fork(*options: str) -> None:
    """Fork after construction, or in the middle of a renewal; all want the token."""
    login = found()
    login.status()
    if "late" in options:
        first = login.refresher.start()
        assert first is not None
        time.sleep(0.5)
        assert not first.is_set()
    children = []
    for _ in range(2):
        if (pid := os.fork()) == 0:
            try:
                tell(who="child", token=login.current().value, drained=login.refresher.drain(5))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    token = login.current().value
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    tell(who="parent", token=token, codes=codes)


def drain() -> None:
    """Stop as a worker does, when the starter says so."""
    login = found()
    login.maintain()
    tell(started=True)
    line_from_starter()
    begun_s = time.monotonic()
    done = login.refresher.drain(27)
    last = login.refresher.last
    tell(drained=done, took_s=time.monotonic() - begun_s, outcome=last and last.outcome.value)


def wait() -> None:
    """Want the token while a greenlet ticks; print the longest time that it stood still."""
    import gevent

    gaps = [0.0]

    def tick() -> None:
        before = time.monotonic()
        while True:
            gevent.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    login = found()
    login.status()
    ticker = gevent.spawn(tick)
    gevent.sleep(0.1)
    del gaps[:]
    try:
        token = login.current().value
    except CredentialError as error:
        token = error.code
    ticker.kill()
    last = login.refresher.last
    tell(
        token=token,
        gap_s=max(gaps, default=0.0),
        ticks=len(gaps),
        outcome=last and last.outcome.value,
    )
    login.refresher.drain(30)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    what, *options = sys.argv[1:]
    if what == "attempt":
        attempt(*options)
    elif what == "storm":
        storm(int(options[0]), *options[1:])
    elif what == "fork":
        fork(*options)
    elif what == "drain":
        drain()
    elif what == "wait":
        wait()


if __name__ == "__main__":
    main()
