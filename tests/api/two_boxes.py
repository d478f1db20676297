"""Two boxes with one Redis: applications in one process, each with a state directory of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, running
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer
from tests.kit.secrets import secret

#: QWEN_PROXY_STATE_KEY of all boxes.
STATE_KEY = secret("state-key-of-boxes") + "-0123456789abcdef"


class Boxes(NamedTuple):
    """Two boxes, what they share, and what is behind both."""

    a: App
    b: App
    redis: RedisServer
    sandbox: Sandbox
    directory: Path

    def share(self) -> None:
        """Do what each box does twice a second: first one tells, then the other one knows."""
        for app in (self.a, self.b, self.a):
            assert app.services.sharing
            for each in app.services.sharing:
                each.look()

    def lose_redis(self) -> None:
        """End it; both boxes notice with their next question."""
        self.redis.kill()

    def bring_redis_back(self) -> None:
        """Start it anew, without data, and let the boxes find it."""
        self.redis.start()
        self.find_redis()

    def find_redis(self) -> None:
        """Let the boxes look whether it is there."""
        for app in (self.a, self.b):
            app.clock.advance(2.0)
            assert app.services.shared_store is not None
            app.services.shared_store.look()


@contextmanager
def two_boxes(**environ: Any) -> Iterator[Boxes]:
    """Two boxes in front of one sandbox, which both take for Model Studio."""
    with (
        tempfile.TemporaryDirectory(prefix="boxes-") as name,
        RedisServer(Path(name)) as redis,
        Sandbox() as sandbox,
    ):
        settings = {
            "DASHSCOPE_BASE_URL": sandbox.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_REDIS_URL": redis.url,
            "QWEN_PROXY_STATE_KEY": STATE_KEY,
            **environ,
        }
        clock = FakeClock()
        with (
            running(clock, state_dir=Path(name) / "a", **settings) as a,
            running(clock, state_dir=Path(name) / "b", **settings) as b,
        ):
            yield Boxes(a, b, redis, sandbox, Path(name))
