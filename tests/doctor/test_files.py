"""Who may read and write what."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from qwen_wsgi.doctor import files
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.doctor.machine import Room
from qwen_wsgi.settings import Settings
from tests.fakes.machine import FakeMachine, faults, levels, of, one
from tests.kit.installed_machine import Load
from tests.kit.secrets import secret

KEY = secret("doctor-files")


@pytest.fixture
def settings(load: Load) -> Settings:
    return load()


@pytest.fixture
def login(qwen_home: Path) -> Path:
    path = qwen_home / "oauth_creds.json"
    path.write_text(json.dumps({"access_token": KEY}))
    path.chmod(0o600)
    return path


def found_in(settings: Settings, qwen_home: Path, machine: FakeMachine) -> list[Finding]:
    machine.uid = os.geteuid()
    found = list(files.check(settings, qwen_home, machine, (KEY,)))
    return [each for each in found if each.subject != "user"]


def test_a_good_home_has_no_fault(
    settings: Settings, login: Path, qwen_home: Path, machine: FakeMachine
) -> None:
    (qwen_home / ".qwen-proxy").mkdir(mode=0o700)
    journal = qwen_home / ".qwen-proxy/journal.json"
    journal.write_text("{}")
    journal.chmod(0o600)

    found = found_in(settings, qwen_home, machine)

    assert {each.level for each in found} == {Level.OK}


def test_without_a_home_there_is_nothing_to_share(
    settings: Settings, home: Path, machine: FakeMachine
) -> None:
    found = found_in(settings, home / ".qwen", machine)

    assert faults(found) == []
    assert levels(found)[str(home / ".qwen")] == "note"


def test_a_file_in_place_of_the_home(settings: Settings, home: Path, machine: FakeMachine) -> None:
    (home / ".qwen").write_text("")

    assert levels(found_in(settings, home / ".qwen", machine))[str(home / ".qwen")] == "fail"


def test_a_home_that_may_not_be_looked_into(
    settings: Settings, login: Path, qwen_home: Path, machine: FakeMachine
) -> None:
    machine.denied.add((qwen_home, os.R_OK | os.X_OK))

    (fault,) = (each for each in faults(found_in(settings, qwen_home, machine)))
    assert fault.subject == str(qwen_home)
    assert "server may not read it" in fault.what


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_login_that_others_may_open(
    settings: Settings, login: Path, qwen_home: Path, machine: FakeMachine, mode: int
) -> None:
    login.chmod(mode)

    fault = one(faults(found_in(settings, qwen_home, machine)))

    assert (fault.level, fault.remedy) == (Level.WARN, f"chmod 600 {login}")
    assert f"{mode:04o}" in fault.what


@pytest.mark.parametrize(("text", "wrong"), [('{"k": "' + KEY + '"}', True), ("{}", False)])
def test_settings_that_others_may_read_are_a_fault_if_they_hold_a_secret(
    settings: Settings, qwen_home: Path, machine: FakeMachine, text: str, wrong: bool
) -> None:
    path = qwen_home / "settings.json"
    path.write_text(text)
    path.chmod(0o644)

    found = faults(found_in(settings, qwen_home, machine))

    assert [each.remedy for each in found] == ([f"chmod 600 {path}"] if wrong else [])


@pytest.mark.parametrize("name", ["oauth_creds.json", "settings.json", ".env"])
def test_a_file_that_may_not_be_read(
    settings: Settings, qwen_home: Path, machine: FakeMachine, name: str
) -> None:
    path = qwen_home / name
    path.write_text("{}")
    path.chmod(0o600)
    machine.denied.add((path, os.R_OK))

    fault = one(faults(found_in(settings, qwen_home, machine)))

    assert (fault.subject, fault.level) == (str(path), Level.FAIL)
    assert "chown" in fault.remedy


def test_a_home_that_others_may_write_to(
    settings: Settings, qwen_home: Path, machine: FakeMachine
) -> None:
    qwen_home.chmod(0o770)

    fault = one(faults(found_in(settings, qwen_home, machine)))

    assert (fault.level, fault.remedy) == (Level.WARN, f"chmod 700 {qwen_home}")


def test_a_home_that_cannot_be_written_is_a_fault_if_there_is_a_login(
    settings: Settings, qwen_home: Path, machine: FakeMachine
) -> None:
    machine.denied.add((qwen_home, os.W_OK))
    assert faults(found_in(settings, qwen_home, machine)) == []

    (qwen_home / "oauth_creds.json").write_text("{}")
    (qwen_home / "oauth_creds.json").chmod(0o600)

    fault = one(faults(found_in(settings, qwen_home, machine)))
    assert fault.level is Level.FAIL
    assert "no login can be refreshed" in fault.what
    assert "BindPaths" in fault.remedy


def test_a_home_of_somebody_else(
    settings: Settings, login: Path, qwen_home: Path, machine: FakeMachine
) -> None:
    machine.uid = os.geteuid() + 1
    machine.users[os.geteuid()] = "alice"

    found = list(files.check(settings, qwen_home, machine, ()))

    assert any("belongs to alice" in each.what for each in of(found, Level.WARN))


def test_root_is_told_that_root_sees_more(
    settings: Settings, qwen_home: Path, machine: FakeMachine
) -> None:
    machine.uid = 0

    found = list(files.check(settings, qwen_home, machine, ()))

    assert levels(found)["user"] == "note"
    assert faults(found) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files away")
def test_what_root_left_in_somebody_s_home(
    settings: Settings, login: Path, qwen_home: Path, machine: FakeMachine
) -> None:
    os.chown(qwen_home, 12345, -1)
    machine.users[12345] = "alice"

    found = list(files.check(settings, qwen_home, machine, ()))

    assert f"sudo chown alice {login}" in [each.remedy for each in faults(found)]


def test_links(settings: Settings, qwen_home: Path, machine: FakeMachine, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("{}")
    real.chmod(0o600)
    (qwen_home / "oauth_creds.json").symlink_to(real)
    (qwen_home / "settings.json").symlink_to("nowhere.json")

    found = levels(found_in(settings, qwen_home, machine))

    assert found[str(qwen_home / "oauth_creds.json")] == "note"
    assert found[str(qwen_home / "settings.json")] == "fail"


@pytest.mark.parametrize(
    ("room", "level"),
    [
        (Room(10**9, 100), "ok"),
        (Room(10**9, None), "ok"),
        (Room(49_000_000, 100), "warn"),
        (Room(900_000, 100), "fail"),
        (Room(10**9, 0), "fail"),
        (OSError(errno.ENOSYS, "not told"), "skipped"),
    ],
)
def test_the_room_that_is_left(
    machine: FakeMachine, tmp_path: Path, room: Room | OSError, level: str
) -> None:
    machine.left = room

    found = one(files.room(tmp_path / "not" / "there", machine))

    assert (found.subject, found.level.value) == (str(tmp_path), level)


@pytest.mark.parametrize(("kind", "level"), [("ext4", "ok"), ("nfs4", "warn"), ("", "ok")])
def test_the_kind_of_disk(qwen_home: Path, machine: FakeMachine, kind: str, level: str) -> None:
    machine.kind = kind

    assert levels(files.home(qwen_home, machine))[str(qwen_home)] == level


class TestStateDirectory:
    def test_it_may_come_later(self, tmp_path: Path, machine: FakeMachine) -> None:
        found = one(files.state_directory(tmp_path / "a/b", machine))

        assert (found.level, found.what) == (Level.OK, "does not exist yet, and can be created")

    def test_nobody_may_make_it(self, tmp_path: Path, machine: FakeMachine) -> None:
        machine.denied.add((tmp_path, os.W_OK))

        found = one(files.state_directory(tmp_path / "a/b", machine))

        assert found.level is Level.FAIL
        assert "QWEN_PROXY_STATE_DIR" in found.remedy

    def test_a_file_is_in_its_place(self, tmp_path: Path, machine: FakeMachine) -> None:
        (tmp_path / "state").write_text("")

        assert one(files.state_directory(tmp_path / "state", machine)).level is Level.FAIL

    def test_it_is_there(self, tmp_path: Path, machine: FakeMachine) -> None:
        assert one(files.state_directory(tmp_path, machine)).level is Level.OK


def test_root_s_view_of_somebody_else_s_home(qwen_home: Path, machine: FakeMachine) -> None:
    machine.uid = 0
    os.chmod(qwen_home, 0o700)
    if os.geteuid() == 0:
        os.chown(qwen_home, 12345, -1)
    machine.users[qwen_home.stat().st_uid] = "alice"

    note = one(files.home(qwen_home, machine))

    assert (note.level, note.remedy) == (Level.NOTE, "Run the server as alice.")
