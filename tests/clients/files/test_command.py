"""`qwen-proxy clients NAME --write` and `--undo`: real files, and everything that can go wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_wsgi.clients.files import command, file_store
from qwen_wsgi.clients.files.changes import SET_UPS
from qwen_wsgi.credentials.files import durable
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.state import file_lock
from tests.fakes.upstream import settings_of
from tests.kit.secrets import secret

KEY = secret("written-client")
URL = "http://box:8080"

FILES = {
    "codex": ".codex/config.toml",
    "claude-code": ".claude/settings.json",
    "opencode": ".config/opencode/opencode.json",
    "aider": ".aider.conf.yml",
    "continue": ".continue/config.yaml",
}
#: What a user may have in each.
OWN = {
    "codex": '# mine\nmodel = "gpt"\n\n[model_providers.qwen]\nname = "by hand"\n',
    "claude-code": '{"permissions": {"allow": ["Bash"]}, "env": {"ANTHROPIC_MODEL": "opus"}}',
    "opencode": '{\n  // mine\n  "model": "a/b",\n}\n',
    "aider": "model: gpt\ndark-mode: true",
    "continue": "name: mine\nversion: 0.0.1\nschema: v1\nmodels:\n- name: gpt\n",
}
READ: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yml": yaml.safe_load,
    ".yaml": yaml.safe_load,
}


class User:
    """A user with a home directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ: dict[str, str] = {}
        self.status: int | None = None

    def file(self, client: str) -> Path:
        """The file of a client."""
        return self.home / FILES[client]

    def has(self, client: str) -> Path:
        """Give the user a file of their own."""
        file = self.file(client)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(OWN[client])
        file.chmod(0o640)
        return file

    def run(self, client: str, **options: Any) -> str:
        """Run the command; what it prints."""
        out = io.StringIO()
        given: dict[str, Any] = {
            "undo": False,
            "with_key": False,
            "url": URL,
            "model": "qwen3-coder-plus",
            "models": lambda: ((), ()),
            "environ": self.environ,
            "json_output": False,
            "question": None,
            "lan": lambda: "",
            "authority": self.home / "none",
        }
        settings = settings_of(HOME=self.home, QWEN_PROXY_STATE_DIR=self.home / "state")
        self.status = command.run(settings, client, out=out, **{**given, **options})
        return out.getvalue()

    def everything(self) -> dict[str, tuple[bytes, int]]:
        """Every file of the user, but for our state."""
        return {
            str(path.relative_to(self.home)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
            for path in self.home.rglob("*")
            if path.is_file() and "state" not in path.parts
        }


@pytest.fixture
def user(tmp_path: Path) -> User:
    (tmp_path / "user").mkdir()
    return User(tmp_path / "user")


def read(file: Path) -> Any:
    return READ[file.suffix](file.read_text())


# --- what is written, and its way back -----------------------------------------------------------


@pytest.mark.parametrize("client", SET_UPS)
def test_a_client_without_files_gets_them_and_they_go_again(user: User, client: str) -> None:
    said = user.run(client)

    assert user.file(client).exists()
    assert "+++" in said and "Set " in said
    assert URL in user.file(client).read_text()
    assert {mode for _, mode in user.everything().values()} == {0o600}

    user.run(client, undo=True)

    assert user.everything() == {}
    assert sorted(path.name for path in user.home.iterdir()) == ["state"]


@pytest.mark.parametrize("client", SET_UPS)
def test_a_users_own_file_keeps_what_it_says_and_comes_back(user: User, client: str) -> None:
    file = user.has(client)
    before = user.everything()

    said = user.run(client)

    copy = file.with_name(file.name + ".before-qwen-proxy")
    assert copy.read_text() == OWN[client]
    assert {stat.S_IMODE(each.stat().st_mode) for each in (file, copy)} == {0o640}
    assert str(copy) in said
    assert URL in file.read_text()

    user.run(client, undo=True)

    assert user.everything() == before


@pytest.mark.parametrize("client", SET_UPS)
def test_a_second_set_up_replaces_the_first_and_both_come_back(user: User, client: str) -> None:
    user.has(client)
    before = user.everything()
    user.run(client)
    user.run(client, url="http://other:81", model="unknown-model")

    text = user.file(client).read_text()
    assert URL not in text and "http://other:81" in text

    assert "nothing to change" in user.run(client, url="http://other:81", model="unknown-model")
    user.run(client, undo=True)
    assert user.everything() == before


@pytest.mark.parametrize("client", SET_UPS)
def test_it_is_taken_back_after_other_edits(user: User, client: str) -> None:
    file = user.has(client)
    user.run(client)
    text = file.read_text()
    if file.suffix == ".json":
        text = text.rstrip().removesuffix("}").rstrip().removesuffix(",") + ', "mine": 1}'
    else:
        text += {".toml": "[mine]\na = 1\n"}.get(file.suffix, "mine: 1\n")
    file.write_text(text)

    user.run(client, undo=True)

    assert "box:8080" not in file.read_text()
    assert "mine" in file.read_text()
    own = {**user.everything()}
    assert own[FILES[client] + ".before-qwen-proxy"] == (OWN[client].encode(), 0o640)
    if client != "opencode":  # it has a comment
        read(file)


def test_claude_code_gets_its_variables(user: User) -> None:
    file = user.has("claude-code")
    said = user.run("claude-code")

    value = read(file)
    assert value["permissions"] == {"allow": ["Bash"]}
    assert value["env"]["ANTHROPIC_BASE_URL"] == URL
    assert value["env"]["ANTHROPIC_MODEL"] == "qwen3-coder-plus"
    assert "ANTHROPIC_AUTH_TOKEN" not in value["env"]
    assert "Set ANTHROPIC_AUTH_TOKEN to your client key." in said


def test_a_file_elsewhere_is_found(user: User) -> None:
    user.environ = {
        "CODEX_HOME": str(user.home / "c"),
        "CLAUDE_CONFIG_DIR": str(user.home / "d"),
        "XDG_CONFIG_HOME": str(user.home / "e"),
        "CONTINUE_GLOBAL_DIR": str(user.home / "f"),
    }
    (user.home / "e/opencode").mkdir(parents=True)
    (user.home / "e/opencode/opencode.jsonc").write_text("{}")
    for client in ("codex", "claude-code", "opencode", "continue"):
        user.run(client)

    assert {path for path in user.everything() if "before" not in path} == {
        "c/config.toml",
        "d/settings.json",
        "e/opencode/opencode.jsonc",
        "f/config.yaml",
    }


# --- the key -------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", SET_UPS)
def test_the_key_is_in_the_file_only_if_asked_for_and_nobody_else_reads_it(
    user: User, client: str
) -> None:
    file = user.has(client)
    before = user.everything()
    user.environ["QWEN_PROXY_KEY"] = KEY
    user.run(client)
    assert KEY not in file.read_text()

    said = user.run(client, with_key=True)

    assert KEY in file.read_text()
    assert KEY not in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "Set " not in said
    state = [path for path in (user.home / "state").rglob("*") if path.is_file()]
    assert state and all(KEY not in path.read_text() for path in state)
    assert {stat.S_IMODE(path.stat().st_mode) for path in state} == {0o600}

    user.run(client, undo=True)
    assert user.everything() == before


def test_a_key_is_asked_for_or_it_is_said_that_there_is_none(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_wsgi.clients.command._TERMINAL", "/nowhere/tty")
    with pytest.raises(SettingsError, match="set QWEN_PROXY_KEY to your client key"):
        user.run("codex", with_key=True)

    monkeypatch.setattr("qwen_wsgi.clients.command._TERMINAL", os.devnull)
    user.run("codex", with_key=True, ask_key=lambda question: KEY)
    assert KEY in user.file("codex").read_text()


def test_a_key_that_a_file_cannot_hold_is_refused(user: User) -> None:
    user.environ["QWEN_PROXY_KEY"] = 'a"b'
    with pytest.raises(SettingsError, match="characters that cannot be written"):
        user.run("codex", with_key=True)
    assert user.everything() == {}


def test_another_secret_of_the_file_is_not_shown(user: User) -> None:
    file = user.has("opencode")
    shown = "sk-" + "0123456789abcdef"
    file.write_text(f'{{"model": "x", "apiKey": "{shown}"}}')

    assert shown not in user.run("opencode")


# --- the person ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "done"), [("y", True), ("", False), ("n", False)])
def test_a_person_is_asked(user: User, answer: str, done: bool) -> None:
    before = user.everything()
    said = user.run("codex", question=lambda question: answer)

    assert user.file("codex").exists() is done
    assert user.status == (0 if done else 1)
    if not done:
        assert user.everything() == before
        assert "Nothing was changed." in said
        with pytest.raises(SettingsError, match="nothing is noted"):
            user.run("codex", undo=True)


def test_programs_are_told_in_json_and_not_asked(user: User) -> None:
    user.has("codex")
    value = json.loads(user.run("codex", json_output=True, question=lambda question: "n"))

    file = str(user.file("codex"))
    assert value["client"] == "codex"
    assert value["files"] == [
        {"path": file, "change": "written", "backup": f"{file}.before-qwen-proxy", "kept": []}
    ]
    assert value["notes"][0] == "Set QWEN_PROXY_KEY to your client key."
    value = json.loads(user.run("codex", json_output=True, undo=True))
    assert value["files"][0]["change"] == "taken back"


@pytest.mark.parametrize(
    ("client", "why"),
    [
        ("qwen-code", "would find itself"),
        ("cline", "has no file that could be written"),
        ("codx", "similar names: codex"),
    ],
)
def test_other_clients_are_left_alone(user: User, client: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        user.run(client)
    assert user.everything() == {}


# --- what goes wrong -----------------------------------------------------------------------------


def refused(user: User, client: str, why: str, **options: Any) -> None:
    """Nothing is changed, and the reason is told."""
    before = user.everything()
    with pytest.raises(SettingsError, match=why) as error:
        user.run(client, **options)
    assert "Nothing was changed" in str(error.value)
    assert user.everything() == before


@pytest.mark.parametrize("client", SET_UPS)
def test_a_file_that_cannot_be_parsed_is_left_alone(user: User, client: str) -> None:
    user.has(client).write_text("= {[\n")
    refused(user, client, "left alone")


def test_a_file_that_is_no_text_is_left_alone(user: User) -> None:
    user.has("codex").write_bytes(b"a = '\xff'\n")
    refused(user, "codex", "not a text in UTF-8")


def test_a_file_that_is_too_large_is_left_alone(user: User, monkeypatch: Any) -> None:
    monkeypatch.setattr(file_store, "_LARGEST_BYTES", 10)
    user.has("codex")
    refused(user, "codex", "larger than")


def test_what_is_no_file_is_left_alone(user: User) -> None:
    user.file("codex").mkdir(parents=True)
    refused(user, "codex", "Is a directory")
    user.file("codex").rmdir()
    os.mkfifo(user.file("codex"))
    with pytest.raises(SettingsError, match="not an ordinary file"):
        user.run("codex")


def test_an_older_file_that_would_be_hidden_is_told_of(user: User) -> None:
    older = user.file("continue").with_name("config.json")
    older.parent.mkdir()
    older.write_text("{}")
    refused(user, "continue", "would not read any more")


def test_of_two_files_none_is_changed_if_one_cannot_be(user: User) -> None:
    user.has("aider")
    (user.home / ".aider.model.metadata.json").write_text("{")
    refused(user, "aider", "metadata.json is left alone: it cannot be parsed as JSON")


def test_a_link_stays_a_link(user: User) -> None:
    real = user.home / "dotfiles/codex.toml"
    real.parent.mkdir()
    real.write_text(OWN["codex"])
    user.file("codex").parent.mkdir()
    user.file("codex").symlink_to(real)

    user.run("codex")

    assert user.file("codex").is_symlink() and URL in real.read_text()
    user.run("codex", undo=True)
    assert user.file("codex").is_symlink() and real.read_text() == OWN["codex"]


def test_a_link_to_nowhere_is_left_alone(user: User) -> None:
    user.file("codex").parent.mkdir()
    user.file("codex").symlink_to(user.home / "gone")
    refused(user, "codex", "a link to a file that does not exist")


def test_an_edit_of_another_program_is_not_lost(user: User, monkeypatch: Any) -> None:
    file = user.has("codex")
    reserve = durable.reserve

    def edited(target: Path, *arguments: Any, **options: Any) -> Any:
        if target == file:
            file.write_text("mine = 1\n")
        return reserve(target, *arguments, **options)

    monkeypatch.setattr(durable, "reserve", edited)
    with pytest.raises(SettingsError, match="another program has just changed it"):
        user.run("codex")

    assert file.read_text() == "mine = 1\n"
    assert os.listdir(file.parent) == [file.name]
    monkeypatch.undo()
    with pytest.raises(SettingsError, match="nothing is noted"):
        user.run("codex", undo=True)


@pytest.mark.parametrize("at", ["state", "copy", "file"])
def test_a_full_disk_leaves_everything_as_it_was(user: User, monkeypatch: Any, at: str) -> None:
    file = user.has("codex")
    reserve, fsync = durable.reserve, os.fsync

    def full(target: Path, *arguments: Any, **options: Any) -> Any:
        if (target == file) == (at == "file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return reserve(target, *arguments, **options)

    def full_copy(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".before-qwen-proxy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(fd)

    if at == "copy":
        monkeypatch.setattr(os, "fsync", full_copy)
    else:
        monkeypatch.setattr(durable, "reserve", full)
    refused(user, "codex", "No space left")


def test_if_the_second_file_fails_it_is_said_what_became_of_the_first(
    user: User, monkeypatch: Any
) -> None:
    reserve = durable.reserve

    def full(target: Path, *arguments: Any, **options: Any) -> Any:
        if target.name == ".aider.model.metadata.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return reserve(target, *arguments, **options)

    monkeypatch.setattr(durable, "reserve", full)
    with pytest.raises(SettingsError, match="aider.conf.yml was written before that"):
        user.run("aider")
    monkeypatch.undo()

    user.run("aider", undo=True)
    assert user.everything() == {}


def test_a_state_directory_that_cannot_be_used_is_told_of(user: User) -> None:
    (user.home / "state").write_text("")
    refused(user, "codex", "QWEN_PROXY_STATE_DIR names another directory")


def test_a_damaged_note_stops_both_ways(user: User) -> None:
    user.has("codex")
    user.run("codex")
    (user.home / "state/clients/codex.json").write_text("{}")
    text = user.file("codex").read_text()
    for undo in (False, True):
        with pytest.raises(SettingsError, match="before-qwen-proxy at the end"):
            user.run("codex", undo=undo)
    assert user.file("codex").read_text() == text


def test_two_commands_do_not_write_at_once(user: User) -> None:
    user.run("codex")
    with (user.home / "state/clients/lock").open() as lock:
        assert file_lock.take(lock.fileno())
        with pytest.raises(SettingsError, match="another `qwen-proxy clients`"):
            user.run("codex", undo=True)


def test_a_file_that_was_removed_since_is_not_made_again(user: User) -> None:
    user.run("codex")
    user.file("codex").unlink()
    user.run("codex", undo=True)
    assert user.everything() == {}


def test_an_older_copy_is_not_overwritten(user: User) -> None:
    file = user.has("codex")
    copy = file.with_name("config.toml.before-qwen-proxy")
    copy.write_text("precious")
    user.run("codex")

    assert copy.read_text() == "precious"
    assert file.with_name("config.toml.before-qwen-proxy-2").read_text() == OWN["codex"]


def test_root_leaves_the_files_of_others_alone(user: User, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((0o40755, *[1000] * 9)))
    with pytest.raises(SettingsError, match="without sudo"):
        user.run("codex")
