"""Starting, being told what is wrong, and stopping."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.services import LOOK_EVERY_S
from tests.kit.processes import free_port
from tests.kit.proxy import UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange, chat, events, text_of
from tests.kit.secrets import secret
from tests.kit.servers import REPO, short_directory, wait_until

pytestmark = pytest.mark.server


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(REPO),
            "QWEN_OAUTH_BASE_URL": "http://127.0.0.1:9",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def assert_one_clear_line(
    result: subprocess.CompletedProcess[str], *words: str, status: int = 2
) -> None:
    assert result.returncode == status
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_a_port_in_use_is_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(home, "serve", PORT=port)
        assert_one_clear_line(ended, port, "another program", "PORT", status=1)


def test_a_unix_socket_of_a_server_whose_queue_is_full_is_one_line(home: Path) -> None:
    with short_directory() as place, contextlib.ExitStack() as clients:
        path = f"{place}/http.sock"
        server = clients.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        for _ in range(3):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(path)
        ended = run(home, "serve", QWEN_PROXY_BIND=f"unix:{path}")

        assert_one_clear_line(ended, path, "QWEN_PROXY_BIND", status=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("QWEN_PROXY_KEEPALIVE", "sometimes"),
        ("QWEN_PROXY_IDLE_TIMEOUT", "-1"),
        ("QWEN_UPSTREAM_BASE_URL", "localhost:8000"),
        ("QWEN_CLI_AUTH", "{not json"),
        ("QWEN_PROXY_BIND", "unix:/no/such/directory/http.sock"),
    ],
)
def test_a_bad_setting_is_one_line(home: Path, name: str, value: str) -> None:
    assert_one_clear_line(run(home, "serve", **{name: value}), name.split("_")[0])


def test_a_broken_settings_file_is_one_line(home: Path) -> None:
    (home / ".qwen").mkdir()
    (home / ".qwen/settings.json").write_text('{"modelProviders": ')
    assert_one_clear_line(run(home, "serve"), "settings.json")


def test_an_unreadable_file_is_one_line(home: Path) -> None:
    # A directory in its place: root reads every file, whatever its mode.
    (home / ".qwen/settings.json").mkdir(parents=True)
    assert_one_clear_line(run(home, "serve"), "settings.json")


def log_with(proxy: Proxy, words: str) -> str:
    """The log, once these words are in it."""
    wait_until(lambda: words in proxy.log.read_text(), f"{words!r} in the log")
    return proxy.log.read_text()


def test_the_banner_tells_what_there_is(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    key = secret("banner")
    proxy = start_proxy(
        DASHSCOPE_API_KEY=key,
        DASHSCOPE_BASE_URL=sandbox.base_url,
        QWEN_PROXY_LOG_FORMAT="human",
        QWEN_PROXY_WORKRES="2",
    )
    banner = log_with(proxy, "Try it")

    for part in (
        proxy.base_url,
        "dashscope",
        "DASHSCOPE_API_KEY",
        sandbox.base_url,
        "fresh",
        "qwen3.7-plus",
        "POST        /v1/responses/compact",
        "Did you mean QWEN_PROXY_WORKERS?",
        f"curl -N {proxy.base_url}/chat/completions",
    ):
        assert part in banner
    assert key[:-4] not in banner
    assert banner.count("is ready") == 1


def test_the_banners_curl_line_streams(start_proxy: StartProxy) -> None:
    proxy = start_proxy(QWEN_PROXY_SANDBOX="auto", QWEN_PROXY_LOG_FORMAT="human")
    lines = log_with(proxy, "curl -N").splitlines()
    line = next(li for li in lines if li.strip().startswith("curl"))
    result = subprocess.run(
        ["bash", "-c", line.strip() + " -sS -i"], capture_output=True, timeout=20, check=True
    )

    assert b"x-qwen-proxy-account: sandbox" in result.stdout
    assert text_of(events(result.stdout)).startswith("[sandbox]")
    assert b"[DONE]" in result.stdout


def test_a_log_for_programs_has_an_object_in_every_line(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(
        DASHSCOPE_API_KEY=secret("json-log"),
        DASHSCOPE_BASE_URL=sandbox.base_url,
        QWEN_PROXY_WORKRES="2",
    )
    lines = [json.loads(line) for line in log_with(proxy, '"ready"').splitlines()]

    (ready,) = [line for line in lines if line["event"] == "ready"]
    assert ready["url"] == proxy.base_url
    assert ready["accounts"] == [
        {"name": "dashscope", "state": "fresh", "origin": "environment DASHSCOPE_API_KEY"}
    ]
    assert ready["models"] > 0
    (warning,) = [line for line in lines if line["level"] == "WARNING"]
    assert warning["event"].endswith("Did you mean QWEN_PROXY_WORKERS?")


def test_lines_for_the_journal_have_a_level_and_no_time(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "journal"
    with log.open("wb") as out:
        found = os.fstat(out.fileno())
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen_wsgi.cli", "serve", "--port", str(free_port())],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}",
                "QWEN_PROXY_SANDBOX": "1",
                "QWEN_PROXY_WORKERS": "1",
                "QWEN_PROXY_WORKRES": "1",
                "PYTHONPATH": str(REPO),
            },
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: "Try it" in log.read_text(), "the banner")
    finally:
        process.terminate()
        process.wait(20)
    lines = log.read_text().splitlines()
    logged = [line for line in lines if re.match(r"<\d>", line)]

    assert logged[0].startswith("<6>INFO    Starting gunicorn")
    assert [line for line in logged if line.startswith("<4>WARNING QWEN_PROXY_WORKRES")]
    assert not [line for line in lines if re.match(r"(<\d>)?\d{4}-", line)]


@pytest.mark.parametrize(
    ("style", "begins"), [("human", "<3>qwen-proxy: cannot"), ("json", '{"level": "ERROR"')]
)
def test_a_start_that_fails_is_told_in_the_form_of_the_log(
    home: Path, tmp_path: Path, style: str, begins: str
) -> None:
    log = tmp_path / "journal"
    with log.open("wb") as out:
        found = os.fstat(out.fileno())
        subprocess.run(
            [sys.executable, "-m", "qwen_wsgi.cli", "serve"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}",
                "QWEN_PROXY_BIND": "nonsense",
                "QWEN_PROXY_LOG_FORMAT": style,
                "PYTHONPATH": str(REPO),
            },
            stderr=out,
            timeout=30,
        )

    assert log.read_text().startswith(begins)


def test_systemd_is_told_what_the_workers_do(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    with short_directory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"{place}/notify")
        systemd.settimeout(20)
        proxy = start_proxy(
            NOTIFY_SOCKET=f"{place}/notify",
            DASHSCOPE_API_KEY=secret("notified"),
            DASHSCOPE_BASE_URL=sandbox.base_url,
        )
        told = [systemd.recv(1000).decode() for _ in range(2)]
        with Exchange(proxy.port, chat()) as exchange:
            assert exchange.head()[0] == 200
            exchange.body()
        told.append(systemd.recv(1000).decode())

    assert told[0].startswith("READY=1")
    one = "STATUS=1 worker, 1 of 1 account usable, 0 calls in flight"
    assert told[1:] == [f"{one}, 0 served", f"{one}, 1 served"]


def test_the_status_is_asked_of_the_running_server(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    key = secret("asked-client")
    proxy = start_proxy(
        DASHSCOPE_API_KEY=secret("asked"),
        DASHSCOPE_BASE_URL=sandbox.base_url,
        QWEN_PROXY_API_KEYS=key,
    )
    environment = {"PORT": str(proxy.port), "QWEN_PROXY_API_KEYS": key}
    before = run(proxy.home, "status", **environment).stdout
    headers = {"Authorization": f"Bearer {key}"}
    with Exchange(proxy.port, chat(), headers=headers) as exchange:
        assert exchange.head()[0] == 200
        exchange.body()
    after = run(proxy.home, "status", **environment).stdout
    keyless = run(proxy.home, "status", PORT=str(proxy.port))

    assert f"Asked: the server at 127.0.0.1:{proxy.port}, version" in before
    assert "dashscope  NOT TRIED YET" in before
    assert "dashscope  WORKS" in after
    assert "last call   answered" in after
    # The key of the account is in the server's environment alone.
    assert "it wants one of its client keys" in keyless.stdout
    assert "No account was found" in keyless.stdout


def test_options_of_serve_win_over_the_environment(home: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_wsgi.cli", "serve", "--host", "localhost"]
        + ["--port", str(port), "--workers", "1", "--reload"],
        cwd=home,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PORT": "1",
            "QWEN_PROXY_BIND": "unix:/no/such/directory/http.sock",
            "QWEN_PROXY_WORKERS": "7",
            "QWEN_PROXY_SANDBOX": "1",
            "PYTHONPATH": str(REPO),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answered() -> bool:
        with contextlib.suppress(OSError), Exchange(port, method="GET", path="/health") as call:
            return call.head()[0] == 200
        return False

    try:
        wait_until(answered, "an answer")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert len(children.split()) == 1
    finally:
        process.terminate()
        process.wait(20)


def test_modules_of_the_directory_where_one_stands_are_not_taken(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "gunicorn.py").write_text("raise SystemExit('the wrong one')\n")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "qwen_wsgi.cli", "serve"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PORT": str(free_port()),
            "QWEN_PROXY_WORKERS": "1",
            "QWEN_PROXY_SANDBOX": "1",
            "PYTHONPATH": str(REPO),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert "Starting gunicorn" in process.stderr.readline()
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(20)


def test_an_account_that_appears_replaces_the_sandbox_at_once(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(QWEN_PROXY_SANDBOX="auto")
    with Exchange(proxy.port, chat()) as exchange:
        assert exchange.head()[1]["x-qwen-proxy-account"] == "sandbox"

    write_settings(proxy.home, sandbox.base_url, secret("appears"))
    with Exchange(proxy.port, chat()) as exchange:
        status, headers = exchange.head()

    assert status == 200
    assert headers["x-qwen-proxy-account"] != "sandbox"


def test_without_accounts_and_sandbox_the_answer_says_what_to_do(start_proxy: StartProxy) -> None:
    proxy = start_proxy()
    with Exchange(proxy.port, chat()) as exchange:
        status, _ = exchange.head()
        error = json.loads(exchange.body())["error"]
    with Exchange(proxy.port, method="GET", path="/health") as exchange:
        health, _ = exchange.head()

    assert (status, error["code"]) == (503, "no_account")
    assert "qwen-proxy status" in error["message"]
    assert health == 503


def write_settings(home: Path, base_url: str, key: str) -> None:
    """qwen-code's settings with one provider entry, comments and all."""
    directory = home / ".qwen"
    directory.mkdir(exist_ok=True)
    (directory / "settings.json").write_text(
        f"""{{
  // written by hand
  "env": {{"MY_PROVIDER_KEY": "{key}"}},
  "modelProviders": {{
    "openai": [
      /* one model */
      {{"id": "qwen3.7-plus", "name": "Mine", "baseUrl": "{base_url}", "envKey": "MY_PROVIDER_KEY"}}
    ]
  }}
}}
"""
    )


def test_settings_json_is_read_again_when_it_changes_and_never_written(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy()
    for label in ("first", "second"):
        # The keys differ in their last four characters, which is what the sandbox notes.
        key = secret(label)[:-4] + label[:4]
        write_settings(proxy.home, sandbox.base_url, key)
        time.sleep(2 * LOOK_EVERY_S)
        before = (proxy.home / ".qwen/settings.json").stat()
        with Exchange(proxy.port, chat()) as exchange:
            assert exchange.head()[0] == 200
            exchange.body()
        sandbox.settle()
        assert sandbox.chats[-1].key_ends == label[:4]
        after = (proxy.home / ".qwen/settings.json").stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def write_login(home: Path, sandbox: Sandbox, *, seconds_left: float) -> None:
    """An oauth_creds.json as the CLI writes it, with a token that the sandbox issued."""
    issued = sandbox.issue()
    directory = home / ".qwen"
    directory.mkdir(exist_ok=True)
    document = {
        "access_token": issued["access_token"],
        "token_type": "Bearer",
        "refresh_token": issued["refresh_token"],
        "resource_url": sandbox.origin,
        "expiry_date": int((time.time() + seconds_left) * 1000),
    }
    (directory / "oauth_creds.json").write_text(json.dumps(document, indent=2))


def test_a_login_is_used_while_its_token_is_valid(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy()
    write_login(proxy.home, sandbox, seconds_left=3600)
    with Exchange(proxy.port, chat(model="coder-model", stream=True)) as exchange:
        status, headers = exchange.head()
        answer = exchange.body()
    assert (status, headers["x-qwen-proxy-account"]) == (200, "oauth")
    assert text_of(events(answer)).startswith("[sandbox]")

    write_login(proxy.home, sandbox, seconds_left=-60)
    with Exchange(proxy.port, chat(model="coder-model", stream=True)) as exchange:
        status, headers = exchange.head()
        error = json.loads(exchange.body())["error"]
    assert (status, error["code"]) == (503, "credentials_expired")
    assert "was not renewed" in error["message"] and "creds status" in error["message"]
    assert int(headers["retry-after"]) >= 1


def test_status_lists_every_account_with_masked_secrets(home: Path, sandbox: Sandbox) -> None:
    keys = [secret("dash"), secret("settings"), secret("explicit")]
    write_settings(home, "http://127.0.0.1:9/v1", keys[1])
    write_login(home, sandbox, seconds_left=3600)
    environment = {
        "DASHSCOPE_API_KEY": keys[0],
        "QWEN_UPSTREAM_BASE_URL": "http://127.0.0.1:8/v1",
        "QWEN_UPSTREAM_API_KEY": keys[2],
    }
    text = run(home, "status", **environment)
    rows = json.loads(run(home, "status", "--json", **environment).stdout)["accounts"]

    assert text.returncode == 0
    assert [row["name"] for row in rows][:2] == ["upstream", "dashscope"]
    assert len(rows) == 4 and {row["kind"] for row in rows} == {"key", "oauth"}
    for row in rows:
        assert row["name"] in text.stdout and row["origin"] in text.stdout
    for key in keys:
        assert key[:-4] not in text.stdout + text.stderr + json.dumps(rows)


def test_status_without_any_account_says_what_to_do(home: Path) -> None:
    result = run(home, "status")

    assert result.returncode == 1
    assert "DASHSCOPE_API_KEY" in result.stdout


def test_a_stop_lets_streams_finish_and_says_so_in_health(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(QWEN_UPSTREAM_BASE_URL=sandbox.base_url, QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY)
    with Exchange(
        proxy.port, chat("[[sandbox: chunks=20, interval=0.05]]", stream=True)
    ) as exchange:
        exchange.read_until(b"data:")
        proxy.process.send_signal(signal.SIGTERM)
        body = exchange.body()

    assert events(body)[-1] == "[DONE]"
    assert proxy.process.wait(10) == 0


def test_a_stream_that_outlives_the_stop_is_told(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_GRACEFUL_TIMEOUT="1",
    )
    with Exchange(
        proxy.port,
        chat("[[sandbox: chunks=900, interval=0.05]]", stream=True),
        headers={"X-Request-Id": "cut"},
    ) as exchange:
        exchange.read_until(b"data:")
        proxy.process.send_signal(signal.SIGTERM)
        exchange.read_to_end()
        found = events(b"".join(exchange.chunks()))

    assert found[-1]["error"]["code"] == "proxy_stopping"
    assert proxy.process.wait(10) == 0
    assert proxy.wait_for_call("cut")["outcome"] == "cut_by_stop"


def test_a_killed_worker_is_replaced_and_the_others_go_on(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = start_proxy(
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
    )
    children = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGKILL)

    deadline = time.monotonic() + 10
    while True:
        try:
            with Exchange(proxy.port, chat(), timeout_s=3) as exchange:
                assert exchange.head()[0] == 200
            return
        except (OSError, AssertionError):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_it_listens_on_a_unix_socket(start_proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    port = free_port()
    result = subprocess.Popen(
        [sys.executable, "-m", "qwen_wsgi.cli", "serve"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PORT": str(port),
            "QWEN_PROXY_BIND": f"unix:{path}",
            "QWEN_PROXY_SANDBOX": "1",
            "QWEN_PROXY_WORKERS": "1",
            "PYTHONPATH": str(REPO),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK")
    finally:
        result.terminate()
        result.wait(10)
