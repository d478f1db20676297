"""gunicorn.conf.py with a real gunicorn: start, stop, reload, and what a stop does to clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.state.database import in_use
from qwen_wsgi.state.database.sqlite import FILE
from qwen_wsgi.state.database.tables import DIRECTORY, prepare
from tests.kit import servers
from tests.kit.servers import Server, StartServer, wait_until, workers

pytestmark = pytest.mark.server


def pid_of_answer(server: Server) -> int:
    status, body = server.get("/")
    assert status == 200
    return int(body)


def test_everything_is_patched_before_the_application_is_loaded(gunicorn: StartServer) -> None:
    # The fixture makes every warning an error, gevent's about late patching among them.
    _, body = gunicorn().get("/process")
    assert json.loads(body)["patched"] == ["socket", "ssl", "threading", "queue", "time"]


def test_a_small_limit_of_open_files_is_raised_to_what_the_streams_need(
    gunicorn: StartServer,
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("the hard limit of this machine is too small to tell")
    server = gunicorn(
        settings={"QWEN_PROXY_MAX_IN_FLIGHT": "100"},
        before=["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh"],
    )
    # Calls, WebSockets, and what a worker has besides.
    assert json.loads(server.get("/process")[1])["files"] == 2 * (100 + 256 + 256) + 64


def test_no_control_socket_is_made(gunicorn: StartServer, place: Path) -> None:
    gunicorn()
    assert [path for path in place.rglob("*") if path.is_socket()] == []


def test_the_unix_socket_is_open_to_its_group_and_nobody_else(
    gunicorn: StartServer, place: Path
) -> None:
    gunicorn(unix=True)
    assert (place / "http.sock").stat().st_mode & 0o777 == 0o770


def test_bad_settings_are_one_line_and_exit_code_2(place: Path) -> None:
    server = servers.start_gunicorn(
        place, {"QWEN_PROXY_WORKERS": "many", "QWEN_PROXY_KEEPALIVE": "perhaps"}
    )
    assert server.wait() == 2
    (line,) = server.text.splitlines()
    assert line.startswith("qwen-proxy: bad setting: QWEN_PROXY_WORKERS='many'")
    assert "QWEN_PROXY_KEEPALIVE='perhaps'" in line


def test_a_state_of_a_newer_version_is_one_line_and_exit_code_2(place: Path) -> None:
    state_dir = place / "state"
    prepare(state_dir, SystemClock())
    with contextlib.closing(sqlite3.connect(state_dir / DIRECTORY / FILE)) as newer, newer:
        newer.execute("UPDATE features SET version = 99")
    server = servers.start_gunicorn(place, {"QWEN_PROXY_STATE_DIR": str(state_dir)})
    assert server.wait() == 2
    (line,) = [each for each in server.text.splitlines() if each.startswith("qwen-proxy: ")]
    assert "was written by a newer version of qwen-proxy" in line


def test_a_start_waits_for_a_restore_and_the_lock_is_free_after_the_stop(
    gunicorn: StartServer, place: Path
) -> None:
    state_dir = place / "state"
    state_dir.mkdir()
    with in_use.alone(state_dir):
        server = servers.start_gunicorn(place, {"QWEN_PROXY_STATE_DIR": str(state_dir)})
        time.sleep(0.3)
    servers.serving(server)
    assert in_use.is_used(state_dir)
    server.stop()
    assert not in_use.is_used(state_dir)


def test_gunicorn_logs_in_the_format_of_the_application(gunicorn: StartServer) -> None:
    server = gunicorn(settings={"QWEN_PROXY_LOG_FORMAT": "json"})
    server.stop()
    lines = [line for line in server.text.splitlines() if line.startswith("{")]
    events = [json.loads(line)["event"] for line in lines]
    assert any(event.startswith("Listening at") for event in events)
    assert not re.search(r"\[INFO\]|GET /", server.text)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_stop_does_not_wait_for_idle_clients(gunicorn: StartServer, unix: bool) -> None:
    server = gunicorn(unix=unix)
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(contextlib.closing(server.connect()))
        silent.connect()
        used = stack.enter_context(contextlib.closing(server.connect()))
        used.request("GET", "/")
        assert used.getresponse().read()
        time.sleep(0.2)
        begun = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - begun < 3
    assert "Traceback" not in server.text


def test_a_stop_lets_a_stream_finish_and_closes_the_services_after_it(
    gunicorn: StartServer,
) -> None:
    server = gunicorn()
    with contextlib.closing(server.connect()) as client:
        client.request("GET", "/stream?chunks=4&every=0.4")
        answer = client.getresponse()
        events = servers.chunks(answer)
        assert next(events)[1] == b"data: 0"
        server.send(signal.SIGTERM)
        assert [event for _, event in events][-1] == b"data: [DONE]"
    assert server.wait() == 0
    assert re.search(r"stream closed(.|\n)*demo: closed \d+ draining=True", server.text)


def test_a_request_that_is_already_there_is_answered_in_spite_of_a_stop(
    gunicorn: StartServer,
) -> None:
    server = gunicorn()
    with contextlib.closing(server.connect()) as client:
        client.connect()
        # Two requests at once: the first is under way at the stop, the second waits behind it.
        client.sock.sendall(
            b"GET /slow?s=1 HTTP/1.1\r\nHost: a\r\n\r\nGET /environ HTTP/1.1\r\nHost: b\r\n\r\n"
        )
        time.sleep(0.3)
        server.send(signal.SIGTERM)
        received = b""
        while data := client.sock.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert b'"HTTP_HOST": "b"' in received
    assert server.wait() == 0


def test_a_stream_that_outlives_the_graceful_time_is_cut_and_still_cleans_up(
    gunicorn: StartServer,
) -> None:
    server = gunicorn(settings={"QWEN_PROXY_GRACEFUL_TIMEOUT": "1"})
    with contextlib.closing(server.connect()) as client:
        client.request("GET", "/stream?chunks=1000&every=0.2")
        answer = client.getresponse()
        assert answer.readline() == b"data: 0\n"
        begun = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - begun < 7
    # gunicorn's master would have killed the worker at the same moment, before its clean-up.
    assert re.search(r"stream closed(.|\n)*demo: closed", server.text)
    assert "SIGKILL" not in server.text


def test_a_reload_loses_no_request_and_the_banner_is_not_printed_again(
    gunicorn: StartServer,
) -> None:
    server = gunicorn(settings={"QWEN_PROXY_WORKERS": "2"}, unix=True)
    server.wait_for("is ready")
    old = workers(server)
    failures: list[str] = []
    stop = threading.Event()

    def call_again_and_again() -> None:
        while not stop.is_set():
            try:
                pid_of_answer(server)
            except Exception as error:
                failures.append(repr(error))

    clients = [threading.Thread(target=call_again_and_again) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        server.send(signal.SIGHUP)
        wait_until(
            lambda: len(workers(server)) == 2 and not workers(server) & old, "two new workers"
        )
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert failures == []
    assert server.text.count("is ready") == 1


def test_a_reload_lets_a_stream_finish_in_its_old_worker(gunicorn: StartServer) -> None:
    server = gunicorn()
    old = pid_of_answer(server)
    with contextlib.closing(server.connect()) as client:
        client.request("GET", "/stream?chunks=5&every=0.5")
        answer = client.getresponse()
        assert answer.readline() == b"data: 0\n"
        server.send(signal.SIGHUP)
        wait_until(lambda: workers(server) - {old}, "a new worker")
        assert answer.read().endswith(b"data: [DONE]\n\n")
    wait_until(lambda: pid_of_answer(server) != old, "the new worker answers")
    wait_until(lambda: old not in workers(server), "the old worker is gone")


def test_a_killed_worker_is_replaced(gunicorn: StartServer) -> None:
    server = gunicorn()
    old = pid_of_answer(server)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: workers(server) - {old}, "a new worker")
    assert pid_of_answer(server) != old
    # The hook runs in the master for a worker that vanished: there it has nothing to close.
    assert "demo: closed" not in server.text


def test_forwarding_headers_cannot_move_the_application(gunicorn: StartServer) -> None:
    _, body = gunicorn().get(
        "/environ",
        **{"SCRIPT_NAME": "/environ", "X-Forwarded-Ssl": "on", "X-Forwarded-Proto": "http"},
    )
    environ = json.loads(body)
    assert environ["SCRIPT_NAME"] == ""
    assert environ["wsgi.url_scheme"] == "http"


def test_the_shipped_files_fit_together(tmp_path: Path) -> None:
    """What `qwen-proxy serve` runs, with gunicorn's own check instead of a start."""
    command = [sys.executable, "-W", "error", "-m", "gunicorn", "--check-config"]
    command += ["-c", str(servers.CONF), "--chdir", str(servers.REPO), "wsgi:application"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(servers.REPO)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_a_worker_starts_reaches_it(place: Path, how: signal.Signals) -> None:
    """A worker has gunicorn's handlers some time after the fork, on a busy machine a second."""
    conf = place / "slow.conf.py"
    conf.write_text(
        f"""\
import runpy, time
shipped = runpy.run_path({str(servers.CONF)!r})
globals().update({{name: value for name, value in shipped.items() if name[0] != "_"}})

def post_fork(server, worker):
    time.sleep(1.5)
    shipped["post_fork"](server, worker)
"""
    )
    server = servers.start_gunicorn(place, conf=conf)
    try:
        server.wait_for("Booting worker")
    except BaseException:
        server.stop()
        raise

    assert server.stop(how) == 0
    assert "Worker exiting" in server.text
