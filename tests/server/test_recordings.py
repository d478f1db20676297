"""Recording the calls of a server with two workers, by the command, and sending one again."""

from __future__ import annotations

import concurrent.futures
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.recordings import LOOK_EVERY_S
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy
from tests.kit.raw_client import Exchange, chat
from tests.kit.secrets import core
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server


def command(proxy: Proxy, *words: str) -> subprocess.CompletedProcess[str]:
    """A command beside the server, with the same key and home."""
    return subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", *words],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(proxy.home),
            "PYTHONPATH": str(REPO),
            "PORT": str(proxy.port),
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def ask(proxy: Proxy, number: int) -> int:
    body = chat(f"[[sandbox: chunks=4, interval=0.05]] number {number}", stream=True)
    with Exchange(proxy.port, body, key=CLIENT_KEY) as exchange:
        status = exchange.head()[0]
        exchange.body()
        return status


def test_two_workers_record_as_many_calls_as_were_ordered_and_one_is_sent_again(
    proxy: Proxy, sandbox: Sandbox
) -> None:
    under_way = Exchange(
        proxy.port, chat("[[sandbox: chunks=60, interval=0.05]] old", stream=True), key=CLIENT_KEY
    )
    under_way.read_until(b"data:")
    ordered = command(proxy, "record", "--key", "env-1", "--calls", "5", "--json")
    assert ordered.returncode == 0, ordered.stderr
    order = json.loads(ordered.stdout)
    time.sleep(LOOK_EVERY_S + 0.1)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda number: ask(proxy, number), range(20))) == {200}
    under_way.close()
    files = sorted(Path(order["directory"]).glob(f"call-{order['id']}-*.json"))
    assert len(files) == 5
    wait_until(lambda: all(file.stat().st_size for file in files), "all have ended")

    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        text = file.read_text()
        assert core(CLIENT_KEY) not in text and core(UPSTREAM_KEY) not in text
        recording = json.loads(text)
        assert "number" in recording["request"]["body"]["messages"][0]["content"], "a new call"
        assert recording["response"]["body"].endswith("data: [DONE]\n\n")
    assert command(proxy, "record", "--stop").returncode == 0

    before = len(sandbox.chats)
    again = command(proxy, "replay", str(files[0]), "--account", "dashscope")
    assert again.returncode == 0, again.stderr
    assert again.stderr.startswith("HTTP 200 from the account dashscope")
    assert again.stdout.endswith("data: [DONE]\n\n")
    assert len(sandbox.chats) == before + 1
    assert len(list(Path(order["directory"]).iterdir())) == 5
