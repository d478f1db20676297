"""`qwen-proxy run`: what clients are started with, that nothing else changes, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.clients import run as running
from qwen_wsgi.clients.launch import LAUNCHES, Launch
from qwen_wsgi.clients.recipe import KEY_VARIABLE
from qwen_wsgi.errors import SettingsError
from tests.clients.recipes import BARE, SHOWN, recipe, text_of
from tests.fakes.upstream import settings_of
from tests.kit.secrets import secret

KEY = secret("run-client")
URL = "http://127.0.0.1:8080"

#: Prints what it was started with, then does what its arguments say.
PROGRAM = """#!{python}
import json, os, sys, signal, time
files = {{}}
for name, value in os.environ.items():
    if value.startswith({tmp!r}) and os.path.isfile(value):
        files[name] = [open(value).read(), oct(os.stat(os.path.dirname(value)).st_mode & 0o777)]
with open(os.environ["TOLD"], "w") as out:
    json.dump({{"arguments": sys.argv[1:], "environ": dict(os.environ), "files": files}}, out)
if sys.argv[-1:] == ["wait"]:
    time.sleep(30)
if sys.argv[-1:] == ["die"]:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(7)
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start a client that is a script; its status, and what it was started with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for name in ("codex", "claude", "opencode", "qwen", "aider"):
        text = PROGRAM.format(python=sys.executable, tmp=str(temporary))
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def start(name: str, *arguments: str, **options: Any) -> tuple[int, Any]:
        settings = settings_of(HOME=tmp_path, QWEN_PROXY_STATE_DIR=tmp_path / "state")
        given = {
            **{"url": URL, "model": "", "models": lambda: ((), ()), "err": io.StringIO()},
            **{
                "environ": os.environ,
                "machine": tmp_path / "none",
                "authority": tmp_path / "none",
                **options,
            },
        }
        status = running.run(given.pop("settings", settings), name, arguments, **given)
        assert list(temporary.iterdir()) == []
        return status, json.loads((tmp_path / "told").read_text())

    return start


# --- what each gets ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [SHOWN, BARE], ids=["shown", "bare"])
def test_codex_gets_its_file_as_options(target: Any) -> None:
    launch = LAUNCHES["codex"](target, {})
    assert set(launch.arguments[::2]) == {"-c"}
    lines = [option.replace("=", " = ", 1) for option in launch.arguments[1::2]]
    assert tomllib.loads("\n".join(lines)) == tomllib.loads(
        text_of(recipe("codex", target), "toml")
    )


def test_claude_code_gets_the_variables_of_its_recipe() -> None:
    launch = LAUNCHES["claude-code"](SHOWN, {})
    exports = [
        line.removeprefix("export ").partition("=")
        for line in text_of(recipe("claude-code"), "sh").splitlines()
        if line.startswith("export ANTHROPIC") or line.startswith("export CLAUDE")
    ]
    variables = {name: value.strip('"') for name, _, value in exports}
    assert variables.pop("ANTHROPIC_AUTH_TOKEN") == f"${KEY_VARIABLE}"
    assert dict(launch.environment) == variables
    assert launch.keys == ("ANTHROPIC_AUTH_TOKEN",)
    assert "ANTHROPIC_API_KEY" in launch.unset


def test_qwen_codes_settings_of_the_machine_stay() -> None:
    machine = {
        "modelProviders": {"openai": [{"id": "other"}]},
        "security": {"auth": {"enforcedType": "openai"}, "folderTrust": {"enabled": True}},
    }
    (text,) = (text for _, text in LAUNCHES["qwen-code"](SHOWN, machine).files.values())
    settings = json.loads(text)
    assert [each["id"] for each in settings["modelProviders"]["openai"]] == [SHOWN.model.name]
    assert settings["security"] == {
        "auth": {"enforcedType": "openai", "selectedType": "openai"},
        "folderTrust": {"enabled": True},
    }


def test_aider_gets_the_limits_where_they_are_known() -> None:
    assert LAUNCHES["aider"](SHOWN, {}).files
    bare: Launch = LAUNCHES["aider"](BARE, {})
    assert not bare.files
    assert bare.environment["AIDER_OPENAI_API_BASE"] == BARE.base_url


# --- how it is started ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LAUNCHES))
def test_the_key_is_in_the_environment_alone(
    started: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "mine")
    before = {path for path in tmp_path.rglob("*") if path.name != "told"}

    status, told = started(name, "--mine", "a b")

    assert status == 7
    assert told["arguments"][-2:] == ["--mine", "a b"]
    assert KEY not in json.dumps(told["arguments"])
    assert KEY in told["environ"].values()
    for text, mode in told["files"].values():
        assert KEY not in text
        assert mode == "0o700"
    assert ("ANTHROPIC_API_KEY" in told["environ"]) is (name != "claude-code")
    # Nothing was left behind.
    assert {path for path in tmp_path.rglob("*") if path.name != "told"} == before


def test_a_signal_is_its_status(started: Callable[..., Any]) -> None:
    assert started("codex", "die")[0] == 128 + 9


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)], ids=str
)
def test_a_signal_is_passed_on(
    started: Callable[..., Any], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """As a process of its own: it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_wsgi.cli", "run", "qwen-code", "--url", URL, "--", "wait"],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stderr=subprocess.DEVNULL,
    )
    told = tmp_path / "told"
    deadline = time.monotonic() + 20
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == status
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_server_without_keys_is_not_asked_about(started: Callable[..., Any]) -> None:
    def ask(prompt: str) -> str:
        raise AssertionError("nobody is asked")

    _, told = started("codex", ask=ask)
    assert told["environ"][KEY_VARIABLE] == "none"


def test_who_cannot_be_asked_is_told_the_variable(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_wsgi.clients.command._TERMINAL", "/nonexistent/tty")
    with pytest.raises(SettingsError, match=f"set {KEY_VARIABLE} to your client key"):
        started("codex", url="http://192.168.1.5:8080")


def test_a_person_is_asked(started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_wsgi.clients.command._TERMINAL", os.devnull)
    _, told = started("codex", url="http://192.168.1.5:8080", ask=lambda prompt: KEY)
    assert told["environ"][KEY_VARIABLE] == KEY


def test_the_lans_own_authority_is_trusted(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for each in ("NODE_EXTRA_CA_CERTS", "CODEX_CA_CERTIFICATE"):
        monkeypatch.delenv(each, raising=False)
    authority = tmp_path / "ca.crt"
    authority.touch()
    for name, variable in (("codex", "CODEX_CA_CERTIFICATE"), ("opencode", "NODE_EXTRA_CA_CERTS")):
        options = {"authority": authority, "ask": lambda prompt: KEY}
        _, told = started(name, url="https://127.0.0.1", **options)
        assert told["environ"][variable] == str(authority)
        assert variable not in started(name, url=URL, **options)[1]["environ"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cursor", {}, "there is no recipe for 'cursor'"),
        ("cline", {}, "cline cannot be started so, only codex, claude-code"),
        ("codex", {"model": "a b"}, "is not the name of a model"),
        ("codex", {"url": "nowhere"}, "is not an address"),
    ],
)
def test_what_cannot_be_started_is_told(
    started: Callable[..., Any], name: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        started(name, **options)


def test_a_program_that_is_not_there_is_told(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin/codex").unlink()
    with pytest.raises(SettingsError, match="is not installed: there is no codex in PATH"):
        started("codex")
    (tmp_path / "bin/codex").write_text("#!/nonexistent/interpreter\n")
    (tmp_path / "bin/codex").chmod(0o755)
    with pytest.raises(SettingsError, match="codex cannot be started: No such file"):
        started("codex")


def test_settings_of_the_machine_that_cannot_be_read_are_told(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    machine = tmp_path / "settings.json"
    machine.write_text("{")
    with pytest.raises(SettingsError, match="settings.json cannot be read"):
        started("qwen-code", machine=machine)
    machine.write_text("[]")
    assert started("qwen-code", machine=machine)[0] == 7
