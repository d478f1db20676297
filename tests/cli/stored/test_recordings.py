"""`qwen-proxy record` and `replay`: what they order, print, and send."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli import main
from qwen_wsgi.cli.stored import recordings
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.recordings import Recording
from tests.fakes.raw_server import RawServer, whole
from tests.fakes.upstream import settings_of
from tests.kit.secrets import secret

KEY = secret("replaying")


def settings_for(home: Path, **more: Any) -> Settings:
    return settings_of(HOME=home, QWEN_PROXY_STATE_DIR=home / "state", **more)


def record(settings: Settings, **options: Any) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    given = {"key": None, "calls": 5, "minutes": 10, "listing": False, "stop": False}
    status = recordings.record(
        settings, **{**given, "json_output": True, **options}, out=out, err=err
    )
    return status, out.getvalue(), err.getvalue()


def recording_in(path: Path, **request: Any) -> Path:
    known = {
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": {"user-agent": "somebody", "host": "qwen.lan", "x-request-id": "first"},
        "body": {"model": "m", "messages": []},
    }
    made = Recording(path, str, {**known, **request})
    made.begin_answer(200, {})
    made.write({})
    return path


def replay(settings: Settings, file: Path, account: str = "") -> tuple[int, bytes, str]:
    out, err = io.BytesIO(), io.StringIO()
    status = recordings.replay(settings, str(file), account=account, out=out, err=err)
    return status, out.getvalue(), err.getvalue()


def test_an_order_is_told_with_its_place(home: Path) -> None:
    settings = settings_for(home, PORT=1)
    status, out, _ = record(settings, key="env-1", calls=3)
    order = json.loads(out)

    assert status == 0
    assert (order["key"], order["calls"], order["recorded"]) == ("env-1", 3, 0)
    assert order["directory"] == str(home / "state/recordings")
    listed = json.loads(record(settings, listing=True)[1])
    assert [each["id"] for each in listed["orders"]] == [order["id"]]
    assert listed["files"] == []
    assert json.loads(record(settings, stop=True)[1]) == {"stopped": 1}
    assert json.loads(record(settings, listing=True)[1])["orders"] == []


def test_a_name_that_no_key_has_is_told(home: Path) -> None:
    settings = settings_for(home, PORT=1, QWEN_PROXY_API_KEYS="one-of-the-keys,another-one-of-them")

    assert "there is no client key 'alcie' now" in record(settings, key="alcie")[2]
    for known in ("env-2", "local"):
        assert record(settings, key=known)[2] == ""
    assert "no client key 'env-3'" in record(settings, key="env-3")[2]


def test_the_texts_for_a_person(home: Path) -> None:
    with RawServer(whole(b'{"status": "ok"}')) as server:
        settings = settings_for(home, PORT=server.port)
        _, ordered, _ = record(settings, key="anna", json_output=False)
    assert "The next 5 calls of the key `anna`" in ordered
    assert f"{home}/state/recordings/call-" in ordered
    assert "No running server" not in ordered
    _, again, _ = record(settings_for(home, PORT=1), key="anna", json_output=False)
    assert "No running server was found (no server listens there)" in again
    _, listed, _ = record(settings, listing=True, json_output=False)
    assert listed.count("0 of 5 calls of the key `anna`") == 2
    assert "2 orders" in record(settings, stop=True, json_output=False)[1]
    assert "Nothing is being recorded." in record(settings, listing=True, json_output=False)[1]


@pytest.mark.parametrize(
    "words",
    [
        ["record"],
        ["record", "--key", "a", "--list"],
        ["record", "--list", "--stop"],
        ["record", "--key", "a", "--calls", "0"],
        ["record", "--key", "a", "--calls", "1001"],
        ["record", "--key", "a", "--minutes", "0"],
        ["record", "--key", "a", "--minutes", "1441"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(
    words: list[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QWEN_PROXY_STATE_DIR", str(home / "state"))

    assert main.main(words) == 2
    assert "`record` wants" in capsys.readouterr().err
    assert not (home / "state").exists()


def test_the_commands_can_be_called(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWEN_PROXY_STATE_DIR", str(home / "state"))
    assert main.main(["record", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["orders"] == []
    assert main.main(["replay", str(home / "none")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made(home: Path) -> None:
    (home / "state").write_text("a file")
    status, out, err = record(settings_for(home), key="anna")

    assert (status, out) == (1, "")
    assert "recordings: " in err


def test_a_recording_is_sent_again(home: Path) -> None:
    answer = whole(b'{"ok": 1}', x_qwen_proxy_account="dashscope")
    with RawServer(answer) as server:
        settings = settings_for(home, PORT=server.port, QWEN_PROXY_API_KEYS=KEY)
        status, out, err = replay(settings, recording_in(home / "call"), account="dashscope")
        (request,) = server.requests

    assert (status, out) == (0, b'{"ok": 1}')
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0].startswith("post /v1/chat/completions ")
    assert {"user-agent: somebody", "host: localhost", "x-qwen-account: dashscope"} <= set(lines)
    assert f"authorization: bearer {KEY}".lower() in lines
    assert not any(line.startswith("x-request-id") for line in lines)
    assert json.loads(body) == {"model": "m", "messages": []}
    assert err.startswith("HTTP 200")


def test_an_error_is_printed_and_is_one(home: Path) -> None:
    with RawServer(whole(b'{"error": {}}', "503 Service Unavailable")) as server:
        settings = settings_for(home, PORT=server.port)
        status, out, err = replay(settings, recording_in(home / "call"))

    assert (status, out, err) == (1, b'{"error": {}}', "HTTP 503\n")


def test_what_cannot_be_sent_is_told(home: Path) -> None:
    (home / "other").write_text("{}")
    assert "is no recording" in replay(settings_for(home), home / "other")[2]
    status, _, err = replay(settings_for(home, PORT=1), recording_in(home / "call"))
    assert (status, "no server listens there" in err) == (1, True)
