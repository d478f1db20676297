"""The unit, as `systemctl show` tells it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import env_file
from qwen_wsgi.doctor import service as services
from qwen_wsgi.doctor import systemd, witness
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.doctor.machine import Ran
from qwen_wsgi.doctor.service import Service
from qwen_wsgi.doctor.witness import Witness
from tests.fakes.machine import FakeMachine, faults, levels, of, one
from tests.kit.installed_machine import ENV_FILE, GOOD_UNIT, Load, install_unit, write_env_file
from tests.kit.secrets import core, secret

REPO = Path(__file__).resolve().parents[2]
KEY = secret("doctor-unit")

OWNER = {
    "User": "alice",
    "ProtectHome": "tmpfs",
    "BindPaths": "/home/alice/.qwen:/home/alice/.qwen:rbind",
    "Environment": GOOD_UNIT["Environment"] + " QWEN_HOME=/home/alice/.qwen",
}


def look(machine: FakeMachine, **changes: str) -> Service:
    install_unit(machine, **changes)
    return services.look(machine)


def found_of(machine: FakeMachine, load: Load, **changes: str) -> list[Finding]:
    unit = look(machine, **changes)
    machine.users[os.geteuid()] = unit.user
    return list(systemd.check(load(**unit.environ), unit, machine))


def test_a_good_service(machine: FakeMachine, load: Load) -> None:
    write_env_file(machine, f"DASHSCOPE_API_KEY={KEY}\n")

    found = found_of(machine, load)

    assert faults(found) == []
    assert levels(found) == {"state": "ok", "this command": "ok", "QWEN_HOME": "note"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "there is no systemd here"),
        (Ran(1, "", "System has not been booted with systemd…\nCan't.\n"), "not been booted"),
        (Ran(1, "", ""), "status 1"),
        (Ran(0, "LoadState=not-found\n", ""), "the service is not installed"),
        (PermissionError(13, "denied"), "cannot be run"),
        (TimeoutError("systemctl took longer"), "cannot be run"),
    ],
    ids=str,
)
def test_no_service_is_no_ok(machine: FakeMachine, load: Load, answer: Any, words: str) -> None:
    if answer is not None:
        machine.programs["systemctl"] = answer

    with pytest.raises(services.NotHere) as raised:
        services.look(machine)

    found = one(systemd.check(load(), str(raised.value), machine))
    assert (found.level, words in found.what) == (Level.SKIPPED, True)


@pytest.mark.parametrize(
    ("changes", "subject", "level", "words", "remedy"),
    [
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "2"},
            "state",
            "fail",
            "a setting is wrong",
            "journalctl -u qwen-proxy -n 5",
        ),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "ExecMainStatus": "217"},
            "state",
            "fail",
            "the user of User= does not exist",
            "systemctl cat",
        ),
        (
            {"ActiveState": "failed", "Result": "start-limit-hit", "ExecMainStatus": "1"},
            "state",
            "fail",
            "too many starts",
            "reset-failed",
        ),
        (
            {"ActiveState": "failed", "Result": "signal", "ExecMainStatus": "9"},
            "state",
            "fail",
            "status 9",
            "journalctl",
        ),
        (
            {"ActiveState": "inactive", "SubState": "dead"},
            "state",
            "fail",
            "it is not running",
            "systemctl start",
        ),
        ({"UnitFileState": "disabled"}, "start at boot", "warn", "does not start", "enable"),
        ({"NRestarts": "1"}, "restarts", "note", "restarted it 1 time(s)", "journalctl"),
        ({"NRestarts": "7"}, "restarts", "warn", "restarted it 7 time(s)", "journalctl"),
        (
            {"NeedDaemonReload": "yes"},
            "unit file",
            "warn",
            "since systemd read it",
            "daemon-reload",
        ),
        ({"DropInPaths": "/etc/x/owner.conf"}, "drop-in", "note", "/etc/x/owner.conf", ""),
        ({"LimitNOFILE": "1024"}, "LimitNOFILE", "warn", "needs 3152", "LimitNOFILE=3152"),
        ({"TimeoutStopUSec": "1min 30s"}, "TimeoutStopSec", "warn", "90 s after a stop", "Sec=95"),
        (
            {"Environment": f"DASHSCOPE_API_KEY={KEY}"},
            "Environment=",
            "warn",
            "every user of this machine can read DASHSCOPE_API_KEY",
            "only root and the service can read",
        ),
    ],
)
def test_what_is_wrong_with_the_unit(
    machine: FakeMachine,
    load: Load,
    changes: dict[str, str],
    subject: str,
    level: str,
    words: str,
    remedy: str,
) -> None:
    found = found_of(machine, load, **changes)

    faults(found)
    (about,) = [each for each in found if each.subject == subject]
    assert (about.level.value, words in about.what, remedy in about.remedy) == (level, True, True)
    assert core(KEY) not in str(found)


SOCKET = "/run/qwen-proxy/http.sock (Stream)"


@pytest.mark.parametrize(
    ("properties", "level", "words"),
    [
        ({"LoadState": "not-found"}, None, ""),
        ({"LoadState": "loaded", "ActiveState": "active", "Listen": SOCKET}, "ok", "calls wait"),
        (
            {"LoadState": "loaded", "ActiveState": "active", "Listen": "[::]:8080 (Stream)"},
            "warn",
            "systemd listens on [::]:8080, so the address unix:/run/qwen-proxy/http.sock of",
        ),
        (
            {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "enabled"},
            "warn",
            "enabled, but systemd does not listen",
        ),
        (
            {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"},
            "note",
            "calls fail for some seconds",
        ),
    ],
    ids=str,
)
def test_the_socket_unit(
    machine: FakeMachine, properties: dict[str, str], level: str | None, words: str
) -> None:
    install_unit(machine)
    block = "".join(f"{name}={value}\n" for name, value in properties.items())
    service = machine.programs["systemctl"]
    assert isinstance(service, Ran)
    machine.programs["systemctl"] = service._replace(out=f"{service.out}\n{block}")

    unit = services.look(machine)
    found = list(systemd.socket(unit))

    assert [each.level.value for each in found] == ([level] if level else [])
    assert all(words in each.what for each in found)
    assert unit.bind == ("[::]:8080" if "8080" in words else "unix:/run/qwen-proxy/http.sock")


def test_no_limit_is_no_fault(machine: FakeMachine, load: Load) -> None:
    assert faults(found_of(machine, load, LimitNOFILE="infinity", TimeoutStopUSec="infinity")) == []


class TestEnvironment:
    def test_the_file_wins_over_the_unit(self, machine: FakeMachine) -> None:
        write_env_file(machine, "QWEN_PROXY_BIND=0.0.0.0:8080\n")

        assert look(machine).bind == "0.0.0.0:8080"

    def test_a_file_that_is_not_there_is_empty(self, machine: FakeMachine) -> None:
        unit = look(machine)

        assert unit.is_known
        assert unit.bind == "unix:/run/qwen-proxy/http.sock"

    def test_a_file_that_may_not_be_read(self, machine: FakeMachine, load: Load) -> None:
        path = machine.root / ENV_FILE.lstrip("/")
        path.mkdir(parents=True)  # as good as no permission, for root too

        found = found_of(machine, load)

        assert levels(found)[ENV_FILE] == "skipped"
        assert "this command" not in levels(found), "what is not known is not the same"

    def test_a_bad_setting_of_the_service(self, machine: FakeMachine, load: Load) -> None:
        write_env_file(machine, "PORT=http\n")
        unit = look(machine)

        fault = one(of(systemd.environment(unit), Level.FAIL))

        assert "PORT='http'" in fault.what

    @pytest.mark.parametrize("line", ["NAME", "MY NAME=value", "1NAME=value", "export NAME=value"])
    def test_lines_that_set_nothing(self, machine: FakeMachine, line: str) -> None:
        write_env_file(machine, f"# a comment = of mine\nA=b\n{line}\n")

        fault = one(faults(systemd.environment(look(machine))))

        assert "line 3" in fault.what

    def test_the_shipped_example_has_no_line_that_sets_nothing(self) -> None:
        text = (REPO / "systemd/qwen-proxy.env.example").read_text()

        assert env_file.parse(text) == ({}, ())

    def test_files_that_systemd_itself_reads_are_beneath_the_servers_own(
        self, machine: FakeMachine
    ) -> None:
        (machine.root / "given.env").write_text("QWEN_PROXY_WORKERS=3\nPORT=3\n")
        write_env_file(machine, "QWEN_PROXY_WORKERS=4\n")

        unit = look(machine, EnvironmentFiles="/given.env (ignore_errors=no)")

        assert unit.settings is not None
        assert (unit.settings.workers, unit.settings.port) == (4, 3)
        assert unit.given["QWEN_PROXY_WORKERS"] == "3"
        assert [str(file.path) for file in unit.files] == ["/given.env", ENV_FILE]


class TestFilesOfTheUnit:
    """Without systemd the unit's files say what the service gets."""

    def install(self, machine: FakeMachine, **texts: str) -> None:
        unit = machine.root / "etc/systemd/system/qwen-proxy.service"
        unit.parent.mkdir(parents=True)
        shutil.copy(REPO / "systemd/qwen-proxy.service", unit)
        (machine.root / "etc/systemd/system/qwen-proxy.service.d").mkdir()
        for name, text in texts.items():
            (unit.parent / f"qwen-proxy.service.d/{name}.conf").write_text(text)

    def test_the_shipped_unit_is_read_as_systemd_tells_it(self, machine: FakeMachine) -> None:
        self.install(machine)
        write_env_file(machine, f"DASHSCOPE_API_KEY={KEY}\n")

        unit = services.read(machine)

        assert (unit.user, unit["Group"], unit["UMask"]) == ("qwen-proxy", "qwen-proxy", "0077")
        assert (unit["StateDirectory"], unit["StateDirectoryMode"]) == ("qwen-proxy", "0700")
        assert unit.given == {
            "QWEN_PROXY_BIND": "unix:/run/qwen-proxy/http.sock",
            "QWEN_PROXY_SANDBOX": "0",
            "QWEN_PROXY_ENV_FILE": ENV_FILE,
        }
        assert {**unit.environ, **unit.given, "DASHSCOPE_API_KEY": KEY} == unit.environ
        assert [str(file.path) for file in unit.files] == [ENV_FILE]
        assert unit.bind == "unix:/run/qwen-proxy/http.sock"

    def test_drop_ins_add_replace_and_begin_anew(self, machine: FakeMachine) -> None:
        self.install(
            machine,
            owner=(REPO / "systemd/owner.conf.example").read_text(),
            zz="[Unit]\nUser=wrong\n[Service]\n# User=wrong\nEnvironment=\n"
            "Environment=A=1 \\\n  'B=two words'\nEnvironmentFile=\n",
        )

        unit = services.read(machine)

        assert unit.user == "alice"
        assert unit.environ == {"A": "1", "B": "two words"}
        assert unit.files == ()
        assert unit.paths("BindPaths") == ("/home/alice/.qwen",)

    def test_a_drop_in_hides_one_of_the_same_name_elsewhere(self, machine: FakeMachine) -> None:
        self.install(machine, a="[Service]\nUser=etc\n")
        other = machine.root / "usr/lib/systemd/system/qwen-proxy.service.d/a.conf"
        other.parent.mkdir(parents=True)
        other.write_text("[Service]\nUser=lib\nGroup=lib\n")

        unit = services.read(machine)

        assert (unit.user, unit["Group"]) == ("etc", "qwen-proxy")

    def test_there_is_none(self, machine: FakeMachine) -> None:
        with pytest.raises(services.NotHere):
            services.read(machine)


class TestWhatRootSaw:
    def test_it_is_handed_over_in_a_file_without_a_name(self, tmp_path: Path) -> None:
        readable, missing = tmp_path / "readable", tmp_path / "missing"
        readable.write_text("A=b\n")
        files = witness.read_files([readable, missing, tmp_path])
        environ = witness.hand_over(Witness(files, (1, "bad")))
        try:
            received = witness.received(environ)
            assert received == Witness({str(readable): "A=b\n", str(missing): ""}, (1, "bad"))
            assert witness.received(environ) == received
        finally:
            os.close(int(environ[witness.VARIABLE]))

    @pytest.mark.parametrize("value", ["", "x", "99999", "0"])
    def test_nothing_was_handed_over(self, value: str) -> None:
        assert witness.received({witness.VARIABLE: value}) is None

    def test_an_environment_file_is_taken_from_it(self, machine: FakeMachine) -> None:
        (machine.root / ENV_FILE.lstrip("/")).mkdir(parents=True)  # nobody reads a directory
        assert not look(machine).is_known

        machine.root_saw = Witness({ENV_FILE: "export A=b\nC=d\n"}, None)
        unit = look(machine)

        assert unit.is_known
        assert unit.environ["C"] == "d"
        assert "line 1" in one(faults(systemd.environment(unit))).what


class TestThisCommand:
    def test_another_user_and_other_settings_are_told(
        self, machine: FakeMachine, load: Load
    ) -> None:
        write_env_file(machine, f"DASHSCOPE_API_KEY={KEY}\n")
        unit = look(machine)

        fault = one(systemd.compared(load(), unit, machine))

        assert "runs as server, the service as qwen-proxy" in fault.what
        assert "DASHSCOPE_API_KEY, QWEN_PROXY_BIND" in fault.what
        assert core(KEY) not in fault.what + fault.remedy


class TestHome:
    """The service has to see the directory, and to write to it for a login."""

    @pytest.fixture
    def owned(self, machine: FakeMachine) -> FakeMachine:
        login = machine.root / "home/alice/.qwen/oauth_creds.json"
        login.parent.mkdir(parents=True)
        login.write_text("{}")
        return machine

    def about(self, machine: FakeMachine, *, owner: str = "alice", **changes: str) -> list[Finding]:
        unit = look(machine, **{**OWNER, **changes})
        machine.users[os.geteuid()] = owner
        return list(systemd.homes(unit, machine))

    def test_the_shipped_drop_in_is_right(self, owned: FakeMachine) -> None:
        assert one(self.about(owned)).level is Level.OK

    def test_the_service_is_somebody_else(self, owned: FakeMachine) -> None:
        fault = one(faults(self.about(owned, owner="bob")))

        assert (fault.level, "User=bob" in fault.remedy) == (Level.FAIL, True)

    def test_it_is_hidden(self, owned: FakeMachine) -> None:
        fault = one(faults(self.about(owned, BindPaths="")))

        assert "ProtectHome=tmpfs hides it" in fault.what
        assert "BindPaths=/home/alice/.qwen" in fault.remedy

    @pytest.mark.parametrize(("logins", "level"), [(True, "fail"), (False, "ok")])
    def test_it_is_read_only(self, owned: FakeMachine, logins: bool, level: str) -> None:
        bound = {"BindPaths": "", "BindReadOnlyPaths": "/home/alice/.qwen"}

        if not logins:
            (owned.root / "home/alice/.qwen/oauth_creds.json").unlink()
        found = one(self.about(owned, **bound))

        assert found.level.value == level

    @pytest.mark.parametrize(
        ("paths", "level"), [("", "fail"), ("/home/alice", "ok"), ("-/home/alice/.qwen", "ok")]
    )
    def test_the_whole_system_is_read_only(
        self, owned: FakeMachine, paths: str, level: str
    ) -> None:
        found = one(self.about(owned, ProtectHome="no", BindPaths="", ReadWritePaths=paths))

        assert found.level.value == level

    def test_it_is_not_there(self, machine: FakeMachine) -> None:
        assert one(self.about(machine)).level is Level.FAIL


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("1min 40s", 100), ("100ms", 0.1), ("2h", 7200), ("infinity", None), ("", None)],
)
def test_spans_of_time(span: str, seconds: float | None) -> None:
    assert services.seconds(span) == seconds
