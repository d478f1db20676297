"""What root's command takes over from the service; the whole is tested in tests/deploy."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from pathlib import Path

import pytest

from qwen_wsgi.cli import as_service
from qwen_wsgi.cli.as_service import Directory, Identity
from qwen_wsgi.doctor.service import Service

WHO = Identity("proxy", 990, 991, "/var/lib/qwen-proxy", "/usr/sbin/nologin")
UNIT = Service(
    {
        "User": "root",
        "Group": grp.getgrgid(0).gr_name,
        "StateDirectory": "qwen-proxy:link other",
        "StateDirectoryMode": "0700",
        "RuntimeDirectory": "qwen-proxy",
        "RuntimeDirectoryMode": "0750",
    },
    given={"QWEN_PROXY_BIND": "unix:/run/x.sock", "DASHSCOPE_API_KEY": "k", "HOME": "/other"},
    environ={"QWEN_PROXY_BIND": "unix:/run/x.sock", "QWEN_PROXY_WORKERS": "of its file"},
)


def test_the_user_and_the_group_are_looked_up() -> None:
    root = pwd.getpwuid(0)

    assert as_service.identity(UNIT) == Identity("root", 0, 0, root.pw_dir, root.pw_shell)


@pytest.mark.parametrize(
    ("properties", "missing"),
    [
        ({"User": "no-such-user"}, "the user no-such-user"),
        ({"User": "root", "Group": "no-such-group"}, "the group no-such-group"),
    ],
)
def test_one_that_does_not_exist_is_named(properties: dict[str, str], missing: str) -> None:
    with pytest.raises(KeyError) as caught:
        as_service.identity(Service(properties))

    assert caught.value.args == (missing,)


def test_the_directories_are_those_of_the_unit() -> None:
    state = Directory(Path("/var/lib/qwen-proxy"), 0o700, "STATE_DIRECTORY")
    runtime = Directory(Path("/run/qwen-proxy"), 0o750, "RUNTIME_DIRECTORY")

    assert as_service.directories(UNIT, serving=False) == [state]
    assert as_service.directories(UNIT, serving=True) == [state, runtime]
    assert as_service.directories(Service({}), serving=True) == []


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    who = Identity("me", os.geteuid(), os.getegid(), "", "")
    place = Directory(tmp_path / "state", 0o750, "STATE_DIRECTORY")
    as_service.make(place, who)
    assert place.path.stat().st_mode & 0o777 == 0o750

    place.path.chmod(0o700)
    as_service.make(place, who)
    assert place.path.stat().st_mode & 0o777 == 0o700


def test_the_environment_is_the_services_with_the_terminal_of_the_caller() -> None:
    caller = {
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "PATH": "/root/bin",
        "DASHSCOPE_API_KEY": "of root",
        "QWEN_PROXY_WORKERS": "9",
        "PYTHONPATH": "/root/code",
    }
    places = as_service.directories(UNIT, serving=False)

    assert as_service.environment(UNIT, WHO, places, caller) == {
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
        "HOME": "/other",
        "USER": "proxy",
        "LOGNAME": "proxy",
        "SHELL": "/usr/sbin/nologin",
        "STATE_DIRECTORY": "/var/lib/qwen-proxy",
        "QWEN_PROXY_BIND": "unix:/run/x.sock",
        "DASHSCOPE_API_KEY": "k",
    }


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {"QWEN_PROXY_BIND": "unix:/run/x.sock"}),
        ({"PORT": "9"}, {}),
        ({"QWEN_PROXY_HOST": "127.0.0.1"}, {}),
        ({"PORT": " "}, {"QWEN_PROXY_BIND": "unix:/run/x.sock"}),
    ],
    ids=str,
)
def test_others_look_for_the_service_unless_they_name_a_server(
    environ: dict[str, str], found: dict[str, str]
) -> None:
    assert as_service.address(UNIT, environ) == found


def test_root_does_not_write_the_files_of_clients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(as_service, "_unit", lambda machine: UNIT)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["qwen-proxy", "clients", "codex", "--write"])

    with pytest.raises(SystemExit) as left:
        as_service.main()

    assert left.value.code == 2
    assert "without sudo" in capsys.readouterr().err
