"""Two real servers with one Redis: the live page of one shows and ends the other's calls."""

from __future__ import annotations

import http.client
import json
import re
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, start
from tests.kit.raw_client import Exchange, chat, events
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.secrets import secret
from tests.kit.servers import wait_until

pytestmark = [pytest.mark.server, needs_redis]

ADMIN: Final = secret("admin-of-two-boxes")
ENDLESS: Final = "[[sandbox: chunks=999, interval=0.05]]"
#: What the promises say, and what a busy machine may add. Seconds.
SHOWN_S: Final = 2.0
CANCELLED_S: Final = 1.0
GRACE_S: Final = 1.5


class Console:
    """The console of one box, for somebody who is signed in."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        with self._ask("POST", "/console/sign-in", {"key": ADMIN}, Origin=proxy.origin) as answer:
            self._cookie = str(answer.headers["Set-Cookie"]).split(";")[0]
        found = re.search(r'name="csrf" content="(\w+)"', self.page())
        assert found
        self._token = found[1]

    @contextmanager
    def _ask(
        self, method: str, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=15)
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = None if form is None else urllib.parse.urlencode(form)
        with closing(connection):
            connection.request(method, path, body, headers)
            with connection.getresponse() as answer:
                yield answer

    def page(self, path: str = "/console/live") -> str:
        with self._ask("GET", path, Cookie=self._cookie) as answer:
            return answer.read().decode()

    def cancel(self, id: str, box: str) -> tuple[int, str]:
        headers = {"Cookie": self._cookie, "Origin": self.proxy.origin, "Accept": "text/plain"}
        form = {"id": id, "box": box, "csrf": self._token}
        with self._ask("POST", "/console/live/cancel", form, **headers) as answer:
            return answer.status, answer.read().decode()

    @contextmanager
    def watching(self) -> Iterator[Shown]:
        """The page, open."""
        found = re.search(r'data-since="([^"]+)"', self.page())
        assert found
        path = f"/console/live/events?since={urllib.parse.quote(found[1])}"
        shown = Shown()
        with self._ask("GET", path, Cookie=self._cookie) as answer:
            assert answer.status == 200
            reader = threading.Thread(target=shown.read, args=(answer,), daemon=True)
            reader.start()
            try:
                yield shown
            finally:
                shown.over.set()  # which it sees at the next event
                reader.join(20.0)


class Shown:
    """What an open page shows."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.calls: list[Any] = []
        self.ended = ""
        self.note = ""

    def read(self, answer: http.client.HTTPResponse) -> None:
        while not self.over.is_set() and (line := answer.readline(1 << 20)):
            if line.startswith(b"data: {"):
                told = json.loads(line[6:])
                self.calls, self.note = told["calls"], told["note"]
                self.ended = told["ended"] + self.ended

    def call(self, id: str) -> Any:
        return next((call for call in self.calls if call[1] == id), None)


class Boxes(NamedTuple):
    a: Console
    b: Console
    redis: RedisServer


@pytest.fixture(scope="module")
def boxes(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boxes]:
    with (
        tempfile.TemporaryDirectory(prefix="boxes-") as name,
        RedisServer(Path(name)) as redis,
    ):
        environ = {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_ADMIN_KEYS": ADMIN,
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_REDIS_URL": redis.url,
            "QWEN_PROXY_STATE_KEY": secret("state-key-of-consoles") + "-0123456789abcdef",
        }
        places = [tmp_path_factory.mktemp(name) for name in ("box-a", "box-b")]
        with ThreadPoolExecutor(2) as pool:
            a, b = pool.map(lambda place: start(place, environ), places)
            yield Boxes(Console(a), Console(b), redis)
            list(pool.map(Proxy.stop, (a, b)))


@pytest.fixture(autouse=True)
def _no_troubles_of_the_test_before() -> None:
    """The shared proxy is not used here."""


def send(console: Console, id: str, text: str = "Say hello", **more: Any) -> Exchange:
    headers = {"X-Request-Id": id}
    return Exchange(console.proxy.port, chat(text, **more), key=CLIENT_KEY, headers=headers)


def within(seconds: float, holds: Callable[[], Any], what: str) -> None:
    wait_until(lambda: bool(holds()), what, within_s=seconds)


def test_a_call_of_another_box_is_shown_and_cancelled(boxes: Boxes, sandbox: Sandbox) -> None:
    with send(boxes.b, "before-the-page") as exchange:
        exchange.body()
    with boxes.a.watching() as shown, send(boxes.b, "far", ENDLESS, stream=True) as exchange:
        exchange.read_until(b"data:")
        within(SHOWN_S + GRACE_S, lambda: shown.call("far"), "the other box's call is shown")
        _, _, box, client, *_ = shown.call("far")
        assert box
        assert client.startswith("env-1")
        assert "Calls of 2 boxes" in shown.note
        assert "was complete" in boxes.a.page("/console/live/call?id=before-the-page")
        assert "This call is in flight" in boxes.a.page("/console/live/call?id=far")

        began = time.monotonic()
        status, told = boxes.a.cancel("far", box)
        assert (status, told) == (200, "The call has ended, and its client was told.")
        exchange.read_to_end()
        assert sandbox.wait_until(
            lambda: all(each.outcome != "open" for each in sandbox.requests), CANCELLED_S
        )
        assert time.monotonic() - began < CANCELLED_S + GRACE_S
        error = events(b"".join(exchange.chunks()))[-1]["error"]
        assert "env-admin-1" in error["message"]
        within(SHOWN_S + GRACE_S, lambda: "call_cancelled" in shown.ended, "its end is shown")
        assert boxes.a.cancel("far", box)[1] == "It has ended already."
        # The address of an ended call leads to it, on whichever box it was.
        (address,) = re.findall(r"href=(live/call\S+)>call_cancelled", shown.ended)
        assert "An admin ended the call" in boxes.a.page(f"/console/{address}")
    assert boxes.a.cancel("far", "nobody")[0] == 503


def test_while_redis_is_away_the_own_box_is_shown_and_the_page_says_so(boxes: Boxes) -> None:
    with boxes.a.watching() as shown, send(boxes.a, "near", ENDLESS, stream=True) as exchange:
        exchange.read_until(b"data:")
        within(SHOWN_S + GRACE_S, lambda: shown.call("near"), "the own call is shown")
        within(SHOWN_S + GRACE_S, lambda: "Calls of 2 boxes" in shown.note, "both tell")
        boxes.redis.kill()
        within(SHOWN_S + GRACE_S, lambda: "Redis is away" in shown.note, "the page says so")
        assert shown.call("near")
        assert "only the calls of this box" in boxes.a.page()
        boxes.redis.start()
        within(8.0, lambda: "Calls of 2 boxes" in shown.note, "the other box is back")
        assert boxes.a.cancel("near", "")[0] == 200
        exchange.read_to_end()
    assert "Traceback" not in boxes.a.proxy.log.read_text()
