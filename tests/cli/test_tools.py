"""`qwen-proxy tools`, with a runner that it starts for itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_wsgi.cli import main as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with a tools.json, and returns status, output and errors."""

    def one(*words: str, tools: object = None) -> tuple[int, str, str]:
        file = tmp_path / "tools.json"
        found = {"fetch": {}, "mcpServers": {"clock": {"from": "qwen-code"}}}
        file.write_text(json.dumps(found if tools is None else tools))
        monkeypatch.setenv("QWEN_PROXY_TOOLS", str(file))
        monkeypatch.setenv("QWEN_PROXY_STATE_DIR", str(tmp_path / "state"))
        status = cli.main(["tools", *words])
        printed = capfd.readouterr()
        return status, printed.out, printed.err

    return one


def test_tools_are_listed_with_the_troubles_of_others(run: Run) -> None:
    status, out, _ = run()

    assert status == 0
    assert "fetch.get" in out
    assert "clock: qwen-code's" in out


def test_as_json(run: Run) -> None:
    status, out, _ = run("list", "--json")

    found = json.loads(out)
    assert status == 0
    assert [each["name"] for each in found["data"]] == ["get"]
    assert found["troubles"].keys() == {"clock"}


def test_a_check_fails_if_one_server_does(run: Run) -> None:
    status, out, _ = run("check")

    assert status == 1
    assert "fetch: ok" in out
    assert "clock: qwen-code's" in out
    assert run("check", tools={"fetch": {}})[0] == 0


def test_a_call_prints_what_the_tool_says(run: Run) -> None:
    status, out, _ = run("call", "fetch.get", '{"url": "http://127.0.0.1/"}')

    assert status == 1
    assert out == "127.0.0.1 may not be fetched: its address is this machine.\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("call",), "tools call"),
        (("list", "x.y"), "tools call"),
        (("call", "fetch.get", "{"), "not JSON"),
        (("call", "fetch.get", "[]"), "must be an object"),
        (("call", "fetch.put"), "there is no tool 'fetch.put'; there are: fetch.get"),
        (("call", "clock.now"), "clock.now cannot be called: qwen-code's"),
    ],
)
def test_words_that_do_not_fit_are_told(run: Run, words: tuple[str, ...], told: str) -> None:
    status, _, err = run(*words)

    assert status == 2
    assert told in err


def test_a_file_that_cannot_be_used_is_told_once(run: Run) -> None:
    status, _, err = run(tools={"pyton": {}})

    assert status == 2
    assert err.count('did you mean "python"?') == 1


def test_without_a_file_there_are_none(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tools"]) == 2
    assert "QWEN_PROXY_TOOLS is not set" in capfd.readouterr().err
