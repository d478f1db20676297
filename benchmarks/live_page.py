"""What an open page of live calls costs: CPU of the process tree at 50 calls a second, with and
without the page.

    python -m benchmarks.live_page [--rounds 4] [--seconds 10] [--pages 1]

Other work on the machine moves the CPU of the calls themselves by more than a page costs: with
several pages the difference is larger, and told for each of them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from qwen_wsgi.sandbox import Sandbox
from tests.kit.processes import cpu_s, tree
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, start
from tests.kit.secrets import secret

ADMIN: Final = secret("admin-of-the-live-page")
#: Calls that begin a second, and clients: each begins one every 1.6 seconds, which takes a second.
_RATE: Final = 50
_CLIENTS: Final = 80
_BODY: Final = json.dumps(
    {
        "model": "qwen3.7-plus",
        "stream": True,
        "messages": [{"role": "user", "content": "[[sandbox: chunks=10, interval=0.1]]"}],
    }
)
#: The goal, in percent of one core.
_MOST: Final = 1.0


@contextmanager
def _load(port: int) -> Iterator[list[int]]:
    """Clients that call at a steady rate; counts their calls."""
    done = [0]
    ending = threading.Event()
    began_s = time.monotonic()

    def client(number: int) -> None:
        next_s = began_s + number / _RATE
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"}
        while not ending.wait(max(0.0, next_s - time.monotonic())):
            next_s += _CLIENTS / _RATE
            connection.request("POST", "/v1/chat/completions", _BODY, headers)
            connection.getresponse().read()
            done[0] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(each,)) for each in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _cookie(proxy: Proxy) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    headers = {"Origin": proxy.origin, "Content-Type": "application/x-www-form-urlencoded"}
    form = urllib.parse.urlencode({"key": ADMIN})
    connection.request("POST", "/console/sign-in", form, headers)
    answer = connection.getresponse()
    assert answer.status == 303, answer.read()
    return str(answer.headers["Set-Cookie"]).split(";")[0]


@contextmanager
def _page(proxy: Proxy, cookie: str, received: list[int]) -> Iterator[None]:
    """An open page."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    connection.request("GET", "/console/live/events", headers={"Cookie": cookie})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()

    def read() -> None:
        try:
            while piece := answer.read1(65_536):
                received[0] += len(piece)
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return  # it was closed

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        assert connection.sock is not None
        connection.sock.shutdown(2)
        reader.join()
        connection.close()


def _percent(proxy: Proxy, seconds: float) -> float:
    """The CPU of the process tree, in percent of a core."""
    begun, before = time.monotonic(), cpu_s(tree(proxy.process.pid))
    time.sleep(seconds)
    return 100 * (cpu_s(tree(proxy.process.pid)) - before) / (time.monotonic() - begun)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--pages", type=int, default=1)
    arguments = parser.parse_args(argv)
    differences = []
    with Sandbox() as upstream, tempfile.TemporaryDirectory() as directory:
        proxy = start(
            Path(directory),
            {
                "DASHSCOPE_BASE_URL": upstream.base_url,
                "DASHSCOPE_API_KEY": UPSTREAM_KEY,
                "QWEN_PROXY_API_KEYS": CLIENT_KEY,
                "QWEN_PROXY_ADMIN_KEYS": ADMIN,
                "QWEN_PROXY_WORKERS": "2",
            },
        )
        try:
            cookie = _cookie(proxy)
            received = [0]
            with _load(proxy.port) as done:
                time.sleep(3)
                for _ in range(arguments.rounds):
                    calls, began = done[0], time.monotonic()
                    closed = _percent(proxy, arguments.seconds)
                    with ExitStack() as pages:
                        for _ in range(arguments.pages):
                            pages.enter_context(_page(proxy, cookie, received))
                        time.sleep(1)
                        opened = _percent(proxy, arguments.seconds)
                    rate = (done[0] - calls) / (time.monotonic() - began)
                    differences.append((opened - closed) / arguments.pages)
                    print(
                        f"{rate:.0f} calls/s: {closed:.2f} % of a core without the page, "
                        f"{opened:.2f} % with {arguments.pages}: {differences[-1]:+.2f} for each",
                        flush=True,
                    )
        finally:
            proxy.stop()
    median = statistics.median(differences)
    print(f"median {median:+.2f} % of a core for a page (goal: below {_MOST:g})")
    print(f"{received[0]:,} bytes were received")
    return int(median >= _MOST)


if __name__ == "__main__":
    sys.exit(main())
