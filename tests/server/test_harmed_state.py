"""Files of the state directory that somebody cuts, removes or overwrites while workers use them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server

#: SQLite's index of its log: it maps this one, and a cut in the middle of a transaction is deadly.
INDEX = "-shm"


def cut(file: Path) -> None:
    os.truncate(file, 0)


def overwrite(file: Path) -> None:
    # SQLite may have made its index very long (and empty), when what was in it made no sense.
    size = min(file.stat().st_size, 1 << 24)
    with file.open("r+b") as opened:
        opened.write(random.Random(7).randbytes(size))


HARM: Sequence[Callable[[Path], None]] = (cut, overwrite, Path.unlink)


class Load:
    """Clients that call all the time, each second answer a stored response; a context manager.

    Attributes:
        ends: how many calls ended how.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(3)]
        self.ends: Counter[str] = Counter()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_calls(self, count: int) -> None:
        """Wait until so many more have ended."""
        wanted = self.ends.total() + count
        wait_until(lambda: self.ends.total() >= wanted, "calls go on")

    def _run(self, number: int) -> None:
        stored = False
        while not self._stop.is_set():
            stored = not stored
            try:
                self.ends[call(self._proxy, f"conversation {number}", stored=stored)] += 1
            except OSError as error:
                self.ends[repr(error)] += 1


def call(proxy: Proxy, text: str, *, stored: bool) -> str:
    """One stream: `answered`, or what came instead."""
    body = {"model": "qwen3.7-plus", "stream": True, "prompt_cache_key": text}
    if stored:
        path, last, body["input"] = "/responses", "response.completed", text
    else:
        path, last = "/chat/completions", "[DONE]"
        body["messages"] = [{"role": "user", "content": text}]
    answer = ask(proxy, "/v1" + path, body).decode()
    return "answered" if last in answer else answer


def ask(proxy: Proxy, path: str, body: Any = None) -> bytes:
    request = urllib.request.Request(
        proxy.origin + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        content: bytes = response.read()
        return content


def files_of(proxy: Proxy) -> list[Path]:
    return [file for file in sorted(state_of(proxy).rglob("*")) if file.is_file()]


def state_of(proxy: Proxy) -> Path:
    return proxy.home / ".local/state/qwen-proxy"


def command(proxy: Proxy, environment: dict[str, str], *words: str) -> str:
    """What a command beside the server prints, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", *words],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(proxy.home),
            "PORT": str(proxy.port),
            "PYTHONPATH": str(REPO),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tell_the_truth(proxy: Proxy, environment: dict[str, str]) -> None:
    """Health, status and doctor know the account, and that it works."""
    health = json.loads(ask(proxy, "/health"))
    assert (health["status"], len(health["accounts"])) == ("ok", 1)
    assert "WORKS" in command(proxy, environment, "status")
    told = command(proxy, environment, "doctor")
    # The packages of whoever runs this test may be older than the pinned ones.
    assert not re.search(r"^ *(fail|warn) +(?! |dependencies)", told, re.MULTILINE), told


def test_harm_to_any_file_ends_no_worker_and_no_call(
    sandbox: Sandbox, start_proxy: StartProxy
) -> None:
    environment = {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        "QWEN_PROXY_WORKERS": "2",
    }
    proxy = start_proxy(**environment)
    with Load(proxy) as load:
        load.wait_for_calls(10)
        first = proxy.workers()
        names = {file.name.partition("-")[0] for file in files_of(proxy)}
        assert {"affinity", "cooldown", "lists", "outcomes", "workers", "state.sqlite3"} <= names
        for harm in HARM:
            for file in files_of(proxy):
                if file.exists() and not (harm is cut and file.name.endswith(INDEX)):
                    harm(file)
                    load.wait_for_calls(6)
        tell_the_truth(proxy, environment)

        wait_until(lambda: len(list(state_of(proxy).glob("*-*"))) == 7, "the files are there again")
        load.wait_for_calls(10)
    assert load.ends == {"answered": load.ends.total()}
    for index in [file for file in files_of(proxy) if file.name.endswith(INDEX)]:
        cut(index)
    for turn in range(4):
        assert call(proxy, "after that", stored=turn % 2 == 0) == "answered"
    assert proxy.workers() == first
    assert proxy.stop() == 0

    for number, file in enumerate(files_of(proxy)):
        HARM[number % 2](file)
    again = start_proxy(**environment)
    assert [call(again, "again", stored=turn % 2 == 0) for turn in range(4)] == ["answered"] * 4
    tell_the_truth(again, environment)
    assert again.stop() == 0
