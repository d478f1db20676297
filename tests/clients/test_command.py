"""`qwen-proxy clients`: which address, which models, and the notes when something is missing."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli import main
from qwen_wsgi.clients import command
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import load
from tests.kit.secrets import core, secret

LAN = "192.168.1.5"


def shown(
    name: str = "codex",
    lan: str = LAN,
    url: str = "",
    model: str = "",
    authority: str = "/nowhere",
    **env: str,
) -> Any:
    """What the command tells programs, with a catalogue of one model."""
    out = io.StringIO()
    command.show(
        load({"HOME": "/nowhere", **env}),
        name,
        url=url,
        model=model,
        models=lambda: ([{"id": "qwen3-coder-plus"}], ["the list is old"]),
        json_output=True,
        out=out,
        lan=lambda: lan,
        authority=Path(authority),
    )
    return json.loads(out.getvalue())


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"HOST": "10.0.0.7", "PORT": "81"}, "http://10.0.0.7:81"),
        ({"HOST": "::1"}, "http://[::1]:8080"),
        ({"HOST": "0.0.0.0"}, f"http://{LAN}:8080"),
        ({"HOST": "::"}, f"http://{LAN}:8080"),
        ({"QWEN_PROXY_BIND": ":9000"}, f"http://{LAN}:9000"),
        ({"QWEN_PROXY_BIND": "unix:/run/x.sock"}, f"http://{LAN}"),
    ],
    ids=str,
)
def test_the_address_is_where_the_server_listens(env: dict[str, str], url: str) -> None:
    value = shown(**env)

    assert value["url"] == url
    # A server with several addresses notes which of them this is.
    notes = [note for note in value["notes"] if "address" in note]
    assert bool(notes) == (LAN in url)


def test_the_address_that_the_operator_says_counts() -> None:
    public = {"QWEN_PROXY_PUBLIC_URL": "https://qwen.lan"}

    assert shown(**public, QWEN_PROXY_BIND="unix:/run/x.sock")["url"] == "https://qwen.lan"
    assert shown(**public, url="http://other.lan")["url"] == "http://other.lan"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("codex", "CODEX_CA_CERTIFICATE"),
        ("claude-code", "NODE_EXTRA_CA_CERTS"),
        ("openai-python", "SSL_CERT_FILE"),
        ("aider", "SSL_CERT_FILE"),
        ("curl", "--cacert"),
        ("cline", "the system's list"),
    ],
)
def test_a_certificate_of_our_own_is_made_known_to_each_client(
    tmp_path: Path, name: str, words: str
) -> None:
    authority = tmp_path / "ca.crt"
    public = {"QWEN_PROXY_PUBLIC_URL": "https://qwen.lan"}
    without = shown(name, authority=str(authority), **public)["notes"]
    authority.touch()
    (note,) = set(shown(name, authority=str(authority), **public)["notes"]) - set(without)

    assert words in note
    assert str(authority) in note
    assert not any("authority" in n for n in shown(name, authority=str(authority))["notes"])


@pytest.mark.parametrize("bind", ["0.0.0.0:8080", "unix:/run/x.sock"])
def test_without_a_network_it_is_this_machine_and_that_is_said(bind: str) -> None:
    value = shown(lan="", QWEN_PROXY_BIND=bind)

    assert value["url"] in ("http://127.0.0.1:8080", "http://localhost")
    assert any("--url" in note for note in value["notes"])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "10.0.0.7"])
@pytest.mark.parametrize("keys", ["", secret("clients-own")])
def test_who_is_served_without_keys_is_said_to_others(host: str, keys: str) -> None:
    notes = shown(HOST=host, QWEN_PROXY_API_KEYS=keys)["notes"]

    noted = any("only programs on its own machine" in note for note in notes)
    assert noted == (host != "127.0.0.1" and not keys)


def test_what_the_user_says_counts() -> None:
    value = shown(url="http://box.lan/v1", model="mine", HOST="0.0.0.0", OPENAI_MODEL="other")

    assert (value["url"], value["model"]) == ("http://box.lan", "mine")
    assert shown(OPENAI_MODEL="other")["model"] == "other"


def test_what_is_to_be_said_about_the_models_is_said() -> None:
    assert "the list is old" in shown()["notes"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "claude"}, "there is no recipe for 'claude'; similar names: claude-code"),
        ({"name": "zzzzzzzzzz"}, "`qwen-proxy clients` lists all"),
        ({"url": "box"}, "not an address like"),
        ({"model": "a b"}, "not the name of a model"),
        ({"QWEN_PROXY_BIND": "nonsense"}, "neither unix:PATH nor HOST:PORT"),
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_met_is_one_line(wrong: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        shown(**wrong)
    assert "\n" not in str(refused.value)


def test_this_machines_address_is_found_without_sending_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "_OUTSIDE", ("127.0.0.1", 9))
    assert command.lan_address() == "127.0.0.1"

    # No way there, as on a machine without a network.
    monkeypatch.setattr(command, "_OUTSIDE", ("127.0.0.1", 0x10000 - 1))
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    assert command.lan_address() == ""


def unreachable(*_: Any) -> None:
    raise OSError("Network is unreachable")


# --- as a command --------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main.main(arguments)
    return (status, *capsys.readouterr())


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "clients")

    assert status == 0
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert ["codex", "responses", "OpenAI Codex"] in lines
    assert ["claude-code", "messages", "Claude Code"] in lines
    assert ["curl", "chat", "curl"] in lines
    status, out, _ = run(capsys, "clients", "--json")
    assert [[row["name"], row["speaks"], row["title"]] for row in json.loads(out)] == lines


def test_an_unknown_name_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "clients", "codecs")

    assert (status, out) == (2, "")
    assert err.startswith("qwen-proxy: there is no recipe for 'codecs'; similar names: codex")
    assert len(err.splitlines()) == 1


def test_without_an_account_there_is_a_recipe_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, _ = run(capsys, "clients", "codex")

    assert status == 0
    assert 'model = "qwen3-coder-plus"\n' in out
    assert "note: No account was found" in out


def test_with_files_that_cannot_be_read_there_is_one_too(
    home: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".qwen").mkdir()
    (home / ".qwen/settings.json").write_text("{")

    status, out, _ = run(capsys, "clients", "codex")

    assert status == 0
    assert 'model = "qwen3-coder-plus"\n' in out
    assert "note: The accounts cannot be read" in out


def test_a_host_that_does_not_answer_is_named_and_no_key_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"QWEN_PROXY_API_KEYS": secret("clients-client"), "DASHSCOPE_API_KEY": secret("host")}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASHSCOPE_BASE_URL", "http://127.0.0.1:9/v1")

    status, out, err = run(capsys, "clients", "claude-code")

    assert status == 0
    assert "export ANTHROPIC_MODEL=qwen3-coder-plus\n" in out
    assert "note: The models of account dashscope cannot be listed" in out
    assert all(core(value) not in out + err for value in keys.values())


def test_the_models_are_those_of_the_catalogue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWEN_PROXY_SANDBOX", "1")

    status, out, _ = run(capsys, "clients", "curl", "--json")

    value = json.loads(out)
    assert status == 0
    assert value["model"] == "qwen3.8-max"
    assert (value["context_length"], value["max_output_tokens"]) == (1_000_000, 131_072)
    assert value["notes"] == []
