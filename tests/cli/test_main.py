"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import __version__
from qwen_wsgi.cli import main, serve
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.raw_server import RawServer, whole
from tests.kit.processes import free_port
from tests.kit.secrets import core, secret

KEY = secret("cli-account")
#: Nobody listens there.
NOBODY = "http://127.0.0.1:9/v1"
CLIENT_KEY = secret("cli-client")


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where commands look for the running server nobody listens."""
    monkeypatch.setenv("PORT", "9")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run one command with an environment; its status, standard output and standard error."""

    def run(*arguments: str, **environ: Any) -> tuple[int, str, str]:
        for name, value in environ.items():
            monkeypatch.setenv(name, str(value))
        try:
            status = main.main(arguments)
        except SystemExit as end:  # argparse's way out
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def as_program(*arguments: str, **environ: Any) -> subprocess.CompletedProcess[str]:
    """The same, as a process of its own: for what would replace this one."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "qwen_wsgi.cli", *arguments],
        env={**os.environ, **{name: str(value) for name, value in environ.items()}},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_version_is_told(run: Any) -> None:
    assert run("--version") == (0, f"qwen-proxy {__version__}\n", "")


@pytest.mark.parametrize("arguments", [("nonsense",), ("settings", "--nonsense")], ids=str)
def test_a_wrong_command_line_is_told_with_the_usage(run: Any, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)

    assert (status, out) == (2, "")
    assert err.startswith("usage: qwen-proxy")


@pytest.mark.parametrize("arguments", [("--help",), ()], ids=["asked", "without a command"])
def test_help_names_every_command(run: Any, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)

    assert (status, err) == (0, "")
    for command in ("serve", "status", "doctor", "models", "settings"):
        assert command in out


#: What makes a start slow, or shows that a layer was loaded which the command does not need.
HEAVY = (
    "flask",
    "gevent",
    "gunicorn",
    "requests",
    "urllib3",
    "segno",
    "sqlite3",
    "asyncio",
    "qwen_wsgi.services",
    "qwen_wsgi.credentials",
    "qwen_wsgi.upstream",
    "qwen_wsgi.sandbox",
    "qwen_wsgi.doctor",
    "qwen_wsgi.clients",
)


@pytest.mark.parametrize("argument", ["--version", "--help", "settings"])
def test_what_needs_no_account_starts_without_the_server_s_modules(argument: str) -> None:
    program = f"""
import sys
from qwen_wsgi.cli.main import main
try:
    status = main([{argument!r}])
except SystemExit as end:
    status = end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


# --- settings ------------------------------------------------------------------------------------


def test_settings_are_listed_with_their_values(run: Any) -> None:
    status, out, err = run("settings", PORT=4321, QWEN_PROXY_API_KEYS=CLIENT_KEY)

    assert (status, err) == (0, "")
    assert "PORT = 4321\n" in out
    assert "MODEL_CACHE_DURATION = 3600 s\n" in out
    assert "OPENAI_MODEL = –\n" in out
    assert "QWEN_PROXY_API_KEYS = …0000\n" in out
    assert core(CLIENT_KEY) not in out


def test_settings_are_listed_for_programs(run: Any) -> None:
    status, out, _ = run("settings", "--json", PORT=4321)

    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0
    assert rows["PORT"]["value"] == "4321"


@pytest.mark.parametrize("command", ["settings", "status", "models", "serve"])
def test_a_bad_setting_is_one_line_and_status_2(command: str) -> None:
    done = as_program(command, PORT="http")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qwen-proxy: bad setting: PORT='http'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["status", "models", "serve"])
def test_an_unreadable_file_of_qwen_code_is_one_line_and_status_2(home: Path, command: str) -> None:
    (home / ".qwen").mkdir()
    (home / ".qwen/settings.json").write_text('{"env": {"KEY": "' + KEY + '"')

    done = as_program(command)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qwen-proxy: ")
    assert "settings.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert core(KEY) not in done.stderr


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (whole(b'{"status":"ok"}'), (0, "{}: ok\n", "")),
        (
            whole(b'{"status":"draining"}', "503 Service Unavailable"),
            (1, "", "qwen-proxy: {}: it answered 503: draining\n"),
        ),
        (whole(b"[]", "503 Service Unavailable"), (1, "", "qwen-proxy: {}: another program")),
    ],
    ids=["ready", "draining", "another"],
)
def test_the_health_check_is_the_servers(
    run: Any, answer: bytes, expected: tuple[int, str, str]
) -> None:
    with RawServer(answer) as server:
        status, out, err = run("healthcheck", PORT=server.port)
        place = f"127.0.0.1:{server.port}"
    assert (status, out) == (expected[0], expected[1].format(place))
    assert err.startswith(expected[2].format(place))


# --- status --------------------------------------------------------------------------------------


def test_the_status_tells_every_account(run: Any) -> None:
    status, out, _ = run(
        "status", DASHSCOPE_API_KEY=KEY, QWEN_UPSTREAM_BASE_URL="http://127.0.0.1:9/v1"
    )

    assert status == 0
    assert "upstream  NOT TRIED YET" in out
    assert "dashscope  NOT TRIED YET" in out
    assert "environment DASHSCOPE_API_KEY" in out
    assert "…0000" in out
    assert core(KEY) not in out


def test_the_status_for_programs(run: Any) -> None:
    status, out, _ = run("status", "--json", DASHSCOPE_API_KEY=KEY)

    body = json.loads(out)
    assert status == 0
    assert [row["name"] for row in body["accounts"]] == ["dashscope"]
    assert body["accounts"][0]["state"] == "fresh"
    assert body["problems"] == []
    assert core(KEY) not in out


def test_without_an_account_the_status_is_1_and_says_what_to_do(run: Any) -> None:
    status, out, _ = run("status")

    assert status == 1
    assert "No account was found" in out
    assert "DASHSCOPE_API_KEY" in out


def test_with_an_expired_login_only_the_status_is_1(run: Any, home: Path) -> None:
    (home / ".qwen").mkdir()
    (home / ".qwen/oauth_creds.json").write_text(
        json.dumps(
            {
                "access_token": secret("cli-access"),
                "refresh_token": secret("cli-refresh"),
                "token_type": "Bearer",
                "resource_url": "portal.qwen.ai",
                "expiry_date": 1_700_000_000_000,
            }
        )
    )

    status, out, _ = run("status")

    assert status == 1
    assert "EXPIRED" in out
    assert "to do" in out
    assert "notforlogs" not in out


def test_the_status_asks_nobody(run: Any) -> None:
    with RawServer(whole(b"{}")) as server:
        run("status", QWEN_UPSTREAM_BASE_URL=server.url)

        assert server.connections == 0


# --- models --------------------------------------------------------------------------------------


def test_models_are_listed_by_id_and_their_source_beside_them(run: Any) -> None:
    with Sandbox(models=["model-a", "model-b"]) as sandbox:
        status, out, err = run(
            "models", QWEN_UPSTREAM_BASE_URL=sandbox.base_url, QWEN_UPSTREAM_API_KEY=KEY
        )

    assert (status, out) == (0, "model-a\nmodel-b\n")
    assert "upstream: 2 models, live list" in err


def test_models_are_listed_for_programs(run: Any) -> None:
    with Sandbox(models=["model-a"]) as sandbox:
        status, out, _ = run(
            "models",
            "--json",
            QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
            QWEN_UPSTREAM_API_KEY=KEY,
        )

    body = json.loads(out)
    assert status == 0
    assert body["object"] == "list"
    assert body["data"][0]["id"] == "model-a"
    assert {"id", "object", "created", "owned_by"} <= body["data"][0].keys()


def test_a_host_that_does_not_answer_is_told_beside_the_built_in_list(run: Any) -> None:
    port = free_port()

    status, out, err = run(
        "models", DASHSCOPE_API_KEY=KEY, DASHSCOPE_BASE_URL=f"http://127.0.0.1:{port}/v1"
    )

    assert status == 0
    assert "qwen3.7-plus" in out.splitlines()
    assert "no live list" in err
    assert "Traceback" not in err


def test_models_are_listed_in_the_order_of_the_accounts(run: Any) -> None:
    """As `GET /v1/models` does."""
    with Sandbox(models=["first"]) as one, Sandbox(models=["second"]) as two:
        _, out, _ = run(
            "models",
            QWEN_UPSTREAM_BASE_URL=one.base_url,
            QWEN_UPSTREAM_API_KEY=KEY,
            DASHSCOPE_API_KEY=KEY,
            DASHSCOPE_BASE_URL=two.base_url,
        )

    assert out == "first\nsecond\n"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        # More than a pipe's buffer, to be read or not.
        (("models",), 0),
        (("models",), 70_000),
        pytest.param(("models", "--json"), 70_000, marks=pytest.mark.once),
        # The others say less: whoever reads so much reads all.
        *(
            pytest.param(arguments, 0, marks=pytest.mark.once)
            for arguments in (
                ("models", "--json"),
                ("settings", "--json"),
                ("status",),
                ("clients",),
                ("--version",),
                ("clients", "--help"),
                (),
            )
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("both", [False, True], ids=["its output", "its errors, too"])
def test_a_command_may_be_piped_to_somebody_who_stops_reading(
    arguments: tuple[str, ...],
    unbuffered: str,
    both: bool,
    read: int,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if arguments[:1] == ("models",):
        entries = [{"id": f"model-{n}", "name": "x" * 1000} for n in range(500)]
        (home / ".qwen").mkdir()
        value = {"modelProviders": {"openai": [{**e, "baseUrl": NOBODY} for e in entries]}}
        (home / ".qwen/settings.json").write_text(json.dumps(value))
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_wsgi.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(read)
    process.stdout.close()
    err = b""
    if process.stderr is not None:
        err = process.stderr.read()
        process.stderr.close()

    # `status` has no account to tell of, if it is read to its end.
    assert process.wait(30) in ((0, 1) if arguments == ("status",) else (0,))
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err
    assert b"Exception ignored" not in err


def test_the_status_of_a_wrong_command_line_is_kept_without_a_reader() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_wsgi.cli", "nonsense"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    process.stdout.close()

    assert process.wait(30) == 2


# --- serve ---------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line_and_status_1() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        done = as_program("serve", PORT=taken.getsockname()[1], QWEN_PROXY_SANDBOX="1")

    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "another program listens there already" in done.stderr


def test_a_socket_in_use_is_not_taken_from_its_server(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    with closing(socket.socket(socket.AF_UNIX)) as taken:
        taken.bind(path)
        taken.listen()
        done = as_program("serve", QWEN_PROXY_BIND=f"unix:{path}", QWEN_PROXY_SANDBOX="1")
        assert Path(path).exists()

    assert (done.returncode, done.stdout) == (1, "")
    assert "another program listens there already" in done.stderr


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_an_address_that_is_not_there_yet_is_one_line_and_status_1(host: str) -> None:
    done = as_program("serve", QWEN_PROXY_HOST=host)

    assert (done.returncode, done.stdout) == (1, "")
    assert "correct HOST" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"QWEN_PROXY_BIND": "nonsense"}, "correct HOST, PORT or QWEN_PROXY_BIND"),
        ({"QWEN_PROXY_BIND": "127.0.0.1:http!"}, "correct HOST, PORT or QWEN_PROXY_BIND"),
        ({"QWEN_PROXY_BIND": "unix:/no/such/directory/x.sock"}, "missing or not writable"),
        ({"QWEN_CLI_AUTH": "no json"}, "QWEN_CLI_AUTH"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_one_line_and_status_2(
    environ: dict[str, str], words: str
) -> None:
    done = as_program("serve", **environ)

    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "no json" not in done.stderr


def test_the_servers_own_files_are_found() -> None:
    directory = serve.server_files()

    assert (directory / "gunicorn.conf.py").is_file()
    assert (directory / "wsgi.py").is_file()


def test_settings_say_where_they_are_from(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.env"
    file.write_text("OPENAI_MODEL=of-the-file\n")

    status, out, _ = run("settings", "--json", PORT=4321, QWEN_PROXY_ENV_FILE=file)
    rows = {row["name"]: (row["value"], row["source"]) for row in json.loads(out)}
    text = run("settings", PORT=4321, QWEN_PROXY_ENV_FILE=file)[1]

    assert status == 0
    assert rows["OPENAI_MODEL"] == ("of-the-file", str(file))
    assert rows["PORT"] == ("4321", "environment")
    assert rows["LOG_LEVEL"] == ("INFO", "default")
    assert f" From: {file}.\n" in text
    assert " From: default" not in text


def test_a_file_that_cannot_be_read_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_bytes(b"A=\xff")

    done = as_program("status", QWEN_PROXY_ENV_FILE=tmp_path / "a.env")

    assert (done.returncode, done.stdout) == (2, "")
    assert "this is not UTF-8" in done.stderr
    assert len(done.stderr.splitlines()) == 1
