"""`qwen-proxy state` beside a running server: a backup under load, and its way back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.database.in_use import is_used
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.servers import REPO, wait_until

pytestmark = pytest.mark.server

MODEL = "qwen3.7-plus"


def state(proxy: Proxy, *words: str) -> tuple[int, Any]:
    """Run `qwen-proxy state … --json` as the server's user."""
    done = subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "state", *words, "--json"],
        env={"PATH": os.environ["PATH"], "HOME": str(proxy.home), "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout)


@contextmanager
def stored_all_the_time(client: openai.OpenAI) -> Iterator[list[str]]:
    """Clients that have responses stored; the ids of what is stored."""
    stop, ids, failures = threading.Event(), list[str](), list[Exception]()

    def work() -> None:
        try:
            while not stop.is_set():
                ids.append(client.responses.create(model=MODEL, input="x" * 300_000).id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield ids
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def known(client: openai.OpenAI, id: str) -> bool:
    try:
        return client.responses.retrieve(id).id == id
    except openai.NotFoundError:
        return False


def kill(proxy: Proxy) -> None:
    """End the master and its workers at once, as a machine that loses its power."""
    for each in (proxy.process.pid, *proxy.workers()):
        os.kill(each, signal.SIGKILL)
    proxy.process.wait(10)


def test_a_backup_under_load_comes_back_after_a_kill(
    sandbox: Sandbox, start_proxy: StartProxy, tmp_path: Path
) -> None:
    environment = {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        "QWEN_PROXY_WORKERS": "2",
    }
    proxy = start_proxy(**environment)
    copy = tmp_path / "backup"
    state_dir = proxy.home / ".local/state/qwen-proxy"
    with openai.OpenAI(base_url=proxy.base_url, api_key=CLIENT_KEY, timeout=30) as client:
        with stored_all_the_time(client) as ids:
            wait_until(lambda: len(ids) >= 6, "responses are stored")
            before = list(ids)
            for _ in range(3):
                status, made = state(proxy, "backup", str(copy), "--force")
                assert (status, made["bytes"]) == (0, copy.stat().st_size)
            during = len(ids)
            wait_until(lambda: len(ids) >= during + 3, "responses are stored")
            status, refused = state(proxy, "restore", str(copy))
            assert status == 1
            assert "A server uses" in refused["error"]
        # Now nothing is under way: this one is in no backup.
        late = client.responses.create(model=MODEL, input="late").id
        assert known(client, late)
    status, found = state(proxy, "check")
    assert (status, found["problems"], found["in_use"]) == (0, [], True)

    kill(proxy)
    wait_until(lambda: not is_used(state_dir), "its lock is free")
    status, done = state(proxy, "restore", str(copy))
    assert status == 0
    assert Path(done["replaced"]).is_file()

    again = start_proxy(**environment)
    with openai.OpenAI(base_url=again.base_url, api_key=CLIENT_KEY, timeout=30) as client:
        assert all(known(client, id) for id in before)
        assert not known(client, late)
        assert client.responses.create(
            model=MODEL, input="on", previous_response_id=before[0]
        ).output_text
    assert state(again, "check")[1]["problems"] == []
