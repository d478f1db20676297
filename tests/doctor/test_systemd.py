"""The unit, as `systemctl show` tells it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.doctor import service as services
from qwen_wsgi.doctor import systemd
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.doctor.machine import Ran
from qwen_wsgi.doctor.service import Service
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
        ({"LimitNOFILE": "1024"}, "LimitNOFILE", "warn", "needs 3088", "LimitNOFILE=3088"),
        ({"TimeoutStopUSec": "1min 30s"}, "TimeoutStopSec", "warn", "90 s after a stop", "Sec=95"),
        (
            {"Environment": f"DASHSCOPE_API_KEY={KEY}"},
            "Environment=",
            "warn",
            "every user of this machine can read DASHSCOPE_API_KEY",
            "only root can read",
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

    @pytest.mark.parametrize("line", ["NAME = value", "NAME= value", "export NAME=value"])
    def test_lines_that_set_nothing(self, machine: FakeMachine, line: str) -> None:
        write_env_file(machine, f"# a comment = of mine\nA=b\n{line}\n")

        fault = one(faults(systemd.environment(look(machine))))

        assert "line 3" in fault.what

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("A=b\n#B=c\n\n;x\nC='d e'\nE=\"f\"\n", {"A": "b", "C": "d e", "E": "f"}),
            ("A=b\\\nc\n", {"A": "bc"}),
            ("A = b\n1A=b\n=b\n", {}),
        ],
    )
    def test_it_is_read_as_systemd_reads_it(self, text: str, found: dict[str, str]) -> None:
        assert services.parse_environment(text) == found

    def test_the_shipped_example_has_no_line_that_sets_nothing(self) -> None:
        text = (REPO / "systemd/qwen-proxy.env.example").read_text()

        assert services.ignored_lines(text) == ()
        assert services.parse_environment(text) == {}


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

    def test_the_command_that_sees_what_the_service_sees(self, machine: FakeMachine) -> None:
        unit = look(machine, **OWNER)

        assert unit.as_service("doctor") == (
            "sudo systemd-run -qP --wait -p User=alice "
            "-p EnvironmentFile=-/etc/qwen-proxy/qwen-proxy.env "
            "-E QWEN_PROXY_BIND=unix:/run/qwen-proxy/http.sock -E QWEN_PROXY_SANDBOX=0 "
            "-E QWEN_HOME=/home/alice/.qwen -E STATE_DIRECTORY=/var/lib/qwen-proxy "
            "/opt/qwen-proxy/venv/bin/qwen-proxy doctor"
        )


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
