"""The checks together: what each is given, and what becomes of one that fails."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi import __version__
from qwen_wsgi.doctor import configuration, run, systemd
from qwen_wsgi.doctor.findings import Finding
from qwen_wsgi.doctor.machine import Ran
from qwen_wsgi.doctor.run import DoctorRun
from qwen_wsgi.settings import Settings
from tests.fakes.machine import FakeMachine, levels, one
from tests.kit.installed_machine import (
    ENV_FILE,
    Load,
    install_nginx,
    install_unit,
    write_env_file,
)
from tests.kit.secrets import core, secret

KEY = secret("doctor-whole")


def groups(settings: Settings, machine: FakeMachine) -> dict[str, list[Finding]]:
    found = DoctorRun(settings, machine, only=None, calls=False)
    try:
        return {name: group for name, group in found.groups() if group}
    finally:
        found.close()


@pytest.fixture
def served(machine: FakeMachine) -> FakeMachine:
    """A machine with the service and nginx, all in order, looked at by the service's user."""
    install_nginx(machine)
    install_unit(machine)
    machine.uid = os.geteuid()
    machine.users[machine.uid] = "qwen-proxy"
    body = {"status": "ok", "version": __version__, "accounts": [{"name": "dashscope"}]}
    machine.health = (200, json.dumps(body).encode())
    return machine


def served_with(load: Load, **environ: str) -> Settings:
    """The settings of the unit."""
    unit = {"QWEN_PROXY_BIND": "unix:/run/qwen-proxy/http.sock", "QWEN_PROXY_SANDBOX": "0"}
    return load(**{**unit, "DASHSCOPE_API_KEY": KEY, **environ})


def test_all_in_order(load: Load, served: FakeMachine) -> None:
    found = groups(served_with(load), served)

    wrong = {each.level.value for group in found.values() for each in group} - {"ok", "note"}
    assert wrong <= {"skipped"}
    assert levels(found["server"]) == {"unix:/run/qwen-proxy/http.sock": "ok"}
    assert levels(found["systemd"])["this command"] == "ok"
    assert levels(found["nginx"])["upstream"] == "ok"


def test_the_server_is_looked_for_where_the_service_has_it(load: Load, served: FakeMachine) -> None:
    """A shell has none of the service's settings."""
    found = groups(load(), served)

    assert list(levels(found["server"])) == ["unix:/run/qwen-proxy/http.sock"]
    assert levels(found["systemd"])["this command"] == "warn"


def test_an_environment_file_that_only_root_may_read(load: Load, served: FakeMachine) -> None:
    """The service's user was given its settings, and cannot read the file that they are from."""
    (served.root / ENV_FILE.lstrip("/")).mkdir(parents=True)

    found = groups(served_with(load, QWEN_PROXY_BIND="127.0.0.1:8080"), served)

    assert list(levels(found["server"])) == ["127.0.0.1:8080"]


def test_a_plan_behind_an_open_nginx(load: Load, served: FakeMachine) -> None:
    write_env_file(served, f"BAILIAN_CODING_PLAN_API_KEY={KEY}\n")

    found = groups(served_with(load, BAILIAN_CODING_PLAN_API_KEY=KEY), served)

    (about,) = [each for each in found["terms"] if each.subject == "coding-plan"]
    assert (about.level.value, "port 80" in about.what) == ("warn", True)


def test_a_plan_for_this_machine_alone(load: Load, machine: FakeMachine) -> None:
    found = groups(load(BAILIAN_CODING_PLAN_API_KEY=KEY), machine)

    assert levels(found["terms"]) == {"coding-plan": "note"}


def test_a_bind_address_that_cannot_be_understood(load: Load, machine: FakeMachine) -> None:
    found = groups(load(QWEN_PROXY_BIND="nonsense"), machine)

    assert levels(found["settings"])["address"] == "fail"
    assert levels(found["server"]) == {"address": "skipped"}


def test_a_check_that_breaks_is_told_and_costs_no_other(
    load: Load, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: Settings) -> list[Finding]:
        raise OSError(f"no luck with {KEY}")

    monkeypatch.setattr(configuration, "reach", broken)

    found = groups(load(DASHSCOPE_API_KEY=KEY), machine)

    last = found["settings"][-1]
    assert (last.subject, last.level.value) == ("check", "skipped")
    assert "OSError: no luck with" in last.what
    assert core(KEY) not in last.what
    assert "nginx" in found


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


def written(
    settings: Settings, machine: FakeMachine, out: io.StringIO, **options: bool
) -> tuple[int, list[str]]:
    status = run.run(
        settings, account=None, calls=False, json_output=False, out=out, machine=machine, **options
    )
    return status, out.getvalue().splitlines()


def test_what_is_wrong_comes_first(load: Load, served: FakeMachine) -> None:
    served.health = ConnectionRefusedError(111, "refused")
    settings = served_with(load, QWEN_PROXY_WORKRES="2", _QWEN_PROXY_COMMAND="sudo qwen-proxy")

    status, lines = written(settings, served, io.StringIO())

    assert status == 1
    assert lines[:2] == [
        "what is wrong",
        "  fail     server, unix:/run/qwen-proxy/http.sock: no server listens there (refused)",
    ]
    assert lines[2].startswith("           to do: Start it: ")
    assert lines[3].startswith("  warn     settings, QWEN_PROXY_WORKRES: has no effect")
    assert lines[4] == "           to do: Did you mean QWEN_PROXY_WORKERS?"
    assert lines[5:7] == ["", "settings"]
    assert sum("QWEN_PROXY_WORKRES" in line for line in lines) == 1
    assert lines[-1].endswith("see the lines marked fail.")
    assert "\x1b" not in "".join(lines)


def test_problems_alone(load: Load, served: FakeMachine) -> None:
    (line,) = written(served_with(load), served, io.StringIO(), problems_only=True)[1]

    assert line.endswith(" skipped. No problem was found in what was checked.")


@pytest.mark.parametrize(
    ("environ", "coloured", "rewritten"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
    ids=str,
)
def test_on_a_terminal_there_is_colour(
    load: Load, served: FakeMachine, environ: dict[str, str], coloured: bool, rewritten: bool
) -> None:
    shown = "".join(written(served_with(load, **environ), served, Terminal())[1])

    assert ("\x1b[32mok     \x1b[0m" in shown) == coloured
    assert ("checked: accounts ..." in shown) == rewritten


def test_a_stop_in_the_middle_tells_what_was_found(
    load: Load, served: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> Iterator[Finding]:
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(systemd, "check", interrupted)
    out = io.StringIO()

    with pytest.raises(KeyboardInterrupt):
        written(served_with(load), served, out)

    assert "settings\n  ok       environment: every setting is valid\n" in out.getvalue()
    assert out.getvalue().endswith("\n\nStopped before everything was checked.\n")


def test_the_sandbox_of_the_running_server_is_no_fault(load: Load, machine: FakeMachine) -> None:
    """As after `make run`: the server was told to use it, and this shell was not."""
    body = {
        "status": "ok",
        "version": __version__,
        "sandbox": True,
        "accounts": [{"name": "sandbox"}],
    }
    machine.health = (200, json.dumps(body).encode())

    status, lines = written(load(), machine, io.StringIO())

    assert status == 0
    assert lines[0] == "settings"
    assert not [line for line in lines if "lacks the account" in line or "did not find" in line]


def test_what_cannot_be_read_is_not_compared(load: Load, served: FakeMachine) -> None:
    """Only root may read the environment file."""
    (served.root / ENV_FILE.lstrip("/")).mkdir(parents=True)
    served.users[served.uid] = "somebody"
    served.health = FileNotFoundError(2, "nothing there")

    found = groups(load(), served)

    assert levels(found["systemd"])["this command"] == "skipped"
    assert levels(found["server"]) == {"unix:/run/qwen-proxy/http.sock": "skipped"}


def test_accounts_are_not_compared_with_a_server_whose_settings_are_unknown(
    load: Load, served: FakeMachine
) -> None:
    (served.root / ENV_FILE.lstrip("/")).mkdir(parents=True)

    found = groups(load(QWEN_PROXY_BIND="unix:/run/qwen-proxy/http.sock"), served)

    assert levels(found["server"]) == {"unix:/run/qwen-proxy/http.sock": "ok"}


def test_an_nginx_that_cannot_be_looked_at(load: Load, machine: FakeMachine) -> None:
    machine.programs["nginx"] = Ran(0, "", "")
    place = machine.root / "etc/nginx/conf.d"
    place.mkdir(parents=True)
    (place / "a.conf").mkdir()  # as good as no permission, for root too

    found = groups(load(), machine)

    assert "a.conf cannot be read" in one(found["nginx"]).what


def test_a_login_beside_the_settings(load: Load, machine: FakeMachine, qwen_home: Path) -> None:
    """Its hosts and files are looked at, too; and no token of it is shown."""
    token = secret("doctor-token")
    (qwen_home / "oauth_creds.json").write_text(
        json.dumps(
            {
                "access_token": token,
                "refresh_token": secret("doctor-refresh"),
                "token_type": "Bearer",
                "resource_url": "portal.qwen.ai",
                "expiry_date": 4_000_000_000_000,
            }
        )
    )

    found = groups(load(), machine)

    assert levels(found["accounts"])["oauth"] == "skipped"
    assert levels(found["locks"]) == {"oauth": "ok"}
    assert core(token) not in str(found)
