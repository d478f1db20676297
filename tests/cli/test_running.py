"""Commands ask the running server first, and say whom they asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import local_http
from qwen_wsgi.cli import accounts, running
from qwen_wsgi.errors import ApiError
from qwen_wsgi.settings import Settings
from qwen_wsgi.state import key_copy
from qwen_wsgi.state.state_key import StateKey, command_key
from tests.fakes.raw_server import RawServer, whole
from tests.fakes.upstream import settings_of
from tests.kit.secrets import core, secret

KEY = secret("running-client")
ROW = {
    "name": "dashscope",
    "kind": "key",
    "origin": "environment DASHSCOPE_API_KEY",
    "endpoint": "https://x.example/v1",
    "state": "fresh",
    "detail": "API key is set",
    "credential": "…abcd",
    "remedy": "",
    "usable": True,
    "cause": "",
    "left_alone_s": 0.0,
    "last_call": {"age_s": 7320.0, "cause": "", "answered_s": 7320.0},
}
REPORT = {
    "version": "1.2.3",
    "uid": 1,
    "workers": 2,
    "in_flight": 3,
    "calls": 40,
    "accounts": [ROW],
    "problems": ["a problem"],
    "notes": ["`qwen-proxy settings` is a note"],
}


def of(server: RawServer, home: Path, **more: Any) -> Settings:
    return settings_of(HOME=home, PORT=server.port, **more)


def report(**changes: Any) -> bytes:
    return whole(json.dumps({**REPORT, **changes}).encode())


def test_the_status_is_the_servers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RawServer(report()) as server:
        settings = of(server, home, QWEN_PROXY_API_KEYS=KEY, _QWEN_PROXY_COMMAND="sudo qwen-proxy")
        status = accounts.status(settings, json_output=False)
        (request,) = server.requests

    out = capsys.readouterr().out
    assert status == 0
    assert out.startswith(
        f"Asked: the server at 127.0.0.1:{server.port}, version 1.2.3, 2 worker(s), "
        "3 call(s) in flight, 40 served\n"
    )
    assert "dashscope  WORKS  API key is set\n" in out
    assert "last call   answered 2 h ago\n" in out
    assert "note: a problem\n" in out
    assert "note: `sudo qwen-proxy settings` is a note\n" in out
    assert request.startswith(b"GET /status HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}".encode() in request
    assert core(KEY) not in out


def test_the_status_for_programs_says_whom_it_asked(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RawServer(report()) as server:
        accounts.status(of(server, home), json_output=True)
    asked = json.loads(capsys.readouterr().out)
    accounts.status(settings_of(HOME=home, PORT=9), json_output=True)
    alone = json.loads(capsys.readouterr().out)

    assert asked["asked"] == {"server": f"127.0.0.1:{server.port}", "why_not": None}
    assert asked["accounts"] == [ROW]
    assert alone["asked"] == {"server": None, "why_not": "no server listens there"}
    assert alone["accounts"] == []


@pytest.mark.parametrize(
    ("last", "extra", "headline", "line"),
    [
        (None, {}, "NOT TRIED YET  API key is set", ""),
        (
            {"age_s": 3.2, "cause": "invalid_key", "answered_s": None},
            {"left_alone_s": 50.4, "cause": "invalid_key"},
            "LAST CALL FAILED  API key is set; gets no calls for 50 s (invalid_key)",
            "failed 3 s ago: invalid_key",
        ),
        (
            {"age_s": 200, "cause": "throttled", "answered_s": 400_000},
            {},
            "LAST CALL FAILED  API key is set",
            "failed 3 min ago: throttled; answered 5 d ago",
        ),
    ],
    ids=str,
)
def test_the_servers_last_call_is_told(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    last: Any,
    extra: dict[str, Any],
    headline: str,
    line: str,
) -> None:
    row = {**ROW, **extra, "last_call": last}
    with RawServer(report(accounts=[row])) as server:
        accounts.status(of(server, home), json_output=False)

    out = capsys.readouterr().out
    assert f"dashscope  {headline}\n" in out
    assert (f"last call   {line}\n" in out) == bool(line)
    assert ("last call" in out) == bool(line)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (whole(b'{"error": {"code": "missing_api_key"}}', "401 No"), "one of its client keys"),
        (whole(b'{"error": {"code": "local_only"}}', "403 No"), "one of its client keys"),
        (whole(b'{"error": {"code": "not_found"}}', "404 No"), "of another version"),
        (whole(b"<html>", "404 No"), "another program listens there"),
        (whole(b"[]"), "another program listens there"),
        (whole(b'{"error": 1}', "503 No"), "it answered 503"),
        (b"SSH-2.0-OpenSSH\r\n", "another program listens there"),
    ],
    ids=str,
)
def test_another_answer_is_told_and_the_command_looks_for_itself(
    home: Path, capsys: pytest.CaptureFixture[str], answer: bytes, why: str
) -> None:
    with RawServer(answer) as server:
        settings = of(server, home, DASHSCOPE_API_KEY=KEY)
        assert why in running.ask(settings, "/status").why
        status = accounts.status(settings, json_output=False)

    out = capsys.readouterr().out
    assert status == 0
    assert out.startswith("Asked: this user's own environment and files (not the server at ")
    assert "dashscope  NOT TRIED YET" in out


def test_a_server_that_does_not_answer_is_not_waited_for(home: Path) -> None:
    with RawServer(b"") as server:
        answer = running.ask(of(server, home), "/status", timeout_s=0.2)

    assert answer.value is None
    assert answer.why


def test_a_program_of_another_user_gets_no_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a port that is free anybody may listen."""
    with RawServer(report()) as server:
        settings = of(server, home, QWEN_PROXY_API_KEYS=KEY)
        monkeypatch.setattr(local_http, "listeners", lambda port: {12345})
        answer = running.ask(settings, "/status")

        assert server.connections == 0
    assert answer.why == "a program of another user listens there; it gets no client key"


def test_who_listens_is_known(tmp_path: Path) -> None:
    with RawServer(report()) as server:
        assert local_http.listeners(server.port) == {os.geteuid()}
    assert local_http.listeners(server.port) == set()

    (tmp_path / "net/tcp").mkdir(parents=True)  # cannot be read
    assert local_http.listeners(1, proc=tmp_path) == {-1}
    assert local_http.listeners(1, proc=tmp_path / "nowhere") == set()


@pytest.mark.parametrize(
    "changes", [{"accounts": [{"name": "a"}]}, {"accounts": None}, {"notes": None}], ids=str
)
def test_a_report_of_another_version_is_not_taken(
    home: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    with RawServer(report(**changes)) as server:
        accounts.status(of(server, home), json_output=False)

    assert "it is of another version, or another program" in capsys.readouterr().out


def test_a_socket_that_is_not_there(home: Path, tmp_path: Path) -> None:
    settings = settings_of(HOME=home, QWEN_PROXY_BIND=f"unix:{tmp_path}/http.sock")

    assert running.ask(settings, "/status").why == "no server listens there"
    assert running.ask(settings_of(HOME=home, PORT=0), "/status").why.startswith("with PORT=0")
    assert running.ask(settings_of(HOME=home, QWEN_PROXY_BIND="x"), "/status").why


def test_models_are_those_of_the_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = whole(b'{"object": "list", "data": [{"id": "b"}, {"id": "a"}]}')
    with RawServer(listing) as server:
        accounts.models(of(server, home), json_output=False)
        (request,) = server.requests

    out, err = capsys.readouterr()
    assert out == "b\na\n"
    assert err == f"Asked: the server at 127.0.0.1:{server.port}\n"
    assert request.startswith(b"GET /v1/models?refresh=1 ")


def test_a_clients_setup_offers_the_servers_models(home: Path) -> None:
    with RawServer(whole(b'{"object": "list", "data": [{"id": "b"}]}')) as server:
        assert accounts.models_to_offer(of(server, home)) == ([{"id": "b"}], [])


def test_where_the_database_has_the_keys_a_command_shows_its_own(home: Path) -> None:
    with RawServer(report(), report()) as server:
        settings = of(server, home)
        running.ask(settings, "/status")
        key_copy.write(Path(settings.state_dir), ())
        running.ask(settings, "/status")
        before, after = server.requests

    key = command_key(StateKey("", Path(settings.state_dir)).get())
    assert b"Authorization" not in before
    assert f"Authorization: Bearer {key}".encode() in after


def test_without_the_state_s_key_it_shows_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(self: StateKey) -> bytes:
        raise ApiError("no")

    monkeypatch.setattr(StateKey, "get", unreadable)
    with RawServer(report()) as server:
        settings = of(server, home)
        key_copy.write(Path(settings.state_dir), ())
        running.ask(settings, "/status")
        (request,) = server.requests

    assert b"Authorization" not in request
