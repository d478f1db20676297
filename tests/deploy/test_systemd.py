"""The systemd unit and its examples, without systemd as PID 1."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_wsgi import env_file, settings
from qwen_wsgi.cli.main import EXIT_CONFIGURATION, EXIT_NOT_YET
from qwen_wsgi.credentials.sources import providers
from tests.deploy import unit_sandbox
from tests.kit.sandboxes import without_sandbox
from tests.kit.servers import REPO, StartServer

UNIT = REPO / "systemd/qwen-proxy.service"
SOCKET = REPO / "systemd/qwen-proxy.socket"
TOOLS = REPO / "systemd/qwen-proxy-tools.service"
TOOLS_SOCKET = REPO / "systemd/qwen-proxy-tools.socket"
OWNER = REPO / "systemd/owner.conf.example"
EXAMPLE = REPO / "systemd/qwen-proxy.env.example"

needs_systemd_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed"
)

#: Settings whose line in the example shows a value of somebody's own, not the default.
SHOWN_BY_EXAMPLE = {
    "QWEN_PROXY_REDIS_URL",
    "QWEN_UPSTREAM_BASE_URL",
    "QWEN_HOME",
    "QWEN_CLI_AUTH",
    "QWEN_PROXY_CORS_ORIGINS",
    "QWEN_PROXY_BIND",
    "QWEN_PROXY_WORKERS",
    "QWEN_PROXY_MODEL_ALIASES",
    "QWEN_PROXY_PUBLIC_URL",
}


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def one(name: str) -> str:
    (value,) = unit_values(name)
    return value


def example_values() -> dict[str, str]:
    """Every `NAME=value`, commented out or not."""
    lines = re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    values = {name: value.strip("'") for name, value in lines}
    assert len(values) == len(lines), "a name occurs twice"
    return values


def rows(loaded: settings.Settings) -> list[dict[str, str]]:
    """What is told of the settings, except where they come from."""
    return [{**row, "source": ""} for row in settings.describe(loaded)]


@needs_systemd_analyze
@pytest.mark.parametrize("as_owner", [False, True], ids=["own user", "owner of ~/.qwen"])
def test_systemd_understands_every_line(tmp_path: Path, as_owner: bool) -> None:
    program = tmp_path / "qwen-proxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "qwen-proxy.service"
    unit.write_text(UNIT.read_text().replace("/opt/qwen-proxy/venv/bin/python", str(program)))
    assert str(program) in unit.read_text()
    socket = tmp_path / "qwen-proxy.socket"
    socket.write_text(SOCKET.read_text())
    tools = tmp_path / "qwen-proxy-tools.service"
    tools.write_text(TOOLS.read_text().replace("/opt/qwen-proxy/venv/bin/python", str(program)))
    tools_socket = tmp_path / "qwen-proxy-tools.socket"
    tools_socket.write_text(TOOLS_SOCKET.read_text())
    if as_owner:
        drop_in = tmp_path / "qwen-proxy.service.d/owner.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(OWNER.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, (unit, socket, tools, tools_socket))],
        capture_output=True,
        text=True,
        timeout=30,
    )
    # Other units of the machine, which it loads too, are not our business.
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "qwen" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@needs_systemd_analyze
def test_the_service_is_hardened() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 2.0
    assert done.returncode == 0


@pytest.mark.server
@pytest.mark.skipif(
    not unit_sandbox.available(), reason="libseccomp or systemd-analyze is not installed"
)
def test_the_server_runs_under_the_system_call_rules_of_the_unit(gunicorn: StartServer) -> None:
    server = gunicorn(
        unix=True,
        settings={"QWEN_PROXY_WORKERS": "2"},
        before=[sys.executable, unit_sandbox.__file__, str(UNIT)],
    )
    assert server.get("/environ")[0] == 200
    assert server.stop() == 0
    assert not re.search(r"Traceback|not permitted", server.text)


@pytest.mark.skipif(
    not unit_sandbox.available(), reason="libseccomp or systemd-analyze is not installed"
)
@pytest.mark.skipif(bool(without_sandbox()), reason=without_sandbox())
def test_sandboxes_work_under_the_system_call_rules_of_the_tools_unit_alone() -> None:
    """The server's own unit allows none, on purpose."""
    code = "from tests.kit.sandboxes import without_sandbox; print(without_sandbox() or 'works')"

    def under(unit: Path) -> str:
        done = subprocess.run(
            [sys.executable, unit_sandbox.__file__, str(unit), sys.executable, "-c", code],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    assert under(TOOLS) == "works\n"
    assert "cannot work here" in under(UNIT)


def test_the_tools_unit_is_narrow_but_for_what_sandboxes_need() -> None:
    def lines(path: Path) -> set[str]:
        found = path.read_text().splitlines()
        return {
            line for line in found if re.match(r"(Protect|Private|Restrict|NoNew|Lock|Cap)", line)
        }

    left_out = {line.partition("=")[0] for line in lines(UNIT) - lines(TOOLS)}

    assert left_out == {
        # bubblewrap's, and what hides a part of /proc.
        *("RestrictNamespaces", "RestrictAddressFamilies", "PrivateUsers", "PrivateIPC"),
        *("ProtectKernelLogs", "ProtectKernelTunables", "ProtectProc"),
    }
    unit = TOOLS.read_text()
    assert "MemoryDenyWriteExecute" not in unit, "node makes code while it runs"
    assert "qwen-proxy-env" not in unit
    assert "User=qwen-proxy-tools" in unit


def test_the_unit_leaves_time_and_files_enough() -> None:
    defaults = settings.load({})
    # gunicorn.conf.py gives workers 10 s after the streams.
    assert int(one("TimeoutStopSec")) >= defaults.graceful_timeout_s + 35
    assert int(one("LimitNOFILE")) >= defaults.worker_files
    assert int(one("RestartPreventExitStatus")) == EXIT_CONFIGURATION


def test_what_may_pass_by_itself_is_tried_again_and_again() -> None:
    """Such as an address that is in use, or whose interface is not up yet."""
    assert one("Restart") == "on-failure"
    assert EXIT_NOT_YET not in (0, EXIT_CONFIGURATION)
    assert int(one("StartLimitIntervalSec")) == 0, "no limit"
    assert unit_values("StartLimitBurst") == []
    assert 1 <= int(one("RestartSec")) <= 30


def test_the_environment_of_the_unit_is_made_of_settings() -> None:
    environ = dict(line.split("=", 1) for line in unit_values("Environment"))
    loaded = settings.load(environ)
    assert loaded.bind == "unix:/run/qwen-proxy/http.sock"
    assert loaded.sandbox == "off"
    assert set(environ) <= {row["name"] for row in settings.describe(loaded)}
    assert f"server {loaded.bind} " in (REPO / "nginx/qwen-proxy.conf").read_text()


def test_the_service_reads_its_environment_file_itself() -> None:
    """systemd would give it once; and what is inherited cannot be taken back by a reload."""
    environ = dict(line.split("=", 1) for line in unit_values("Environment"))
    install = (REPO / "install/install.sh").read_text()
    assert environ["QWEN_PROXY_ENV_FILE"] == "/etc/qwen-proxy/qwen-proxy.env"
    assert unit_values("EnvironmentFile") == []
    assert f"readers={one('SupplementaryGroups')}\n" in install
    assert one("SupplementaryGroups") in env_file.read_remedy("/x")
    assert one("ExecReload") == "/bin/kill -HUP $MAINPID"


def test_the_socket_unit_is_where_the_service_and_nginx_have_it() -> None:
    parser = configparser.ConfigParser(strict=False)
    parser.read_string(SOCKET.read_text())
    environ = dict(line.split("=", 1) for line in unit_values("Environment"))
    given = parser["Socket"]
    assert f"unix:{given['ListenStream']}" == environ["QWEN_PROXY_BIND"]
    assert (given["SocketGroup"], given["SocketMode"]) == (one("Group"), "0660")
    # It is in the directory of the service, which must outlive the service.
    assert Path(given["ListenStream"]).parent == Path("/run", one("RuntimeDirectory"))
    assert one("RuntimeDirectoryPreserve") == "yes"
    assert parser["Install"]["WantedBy"] == "sockets.target"


def test_the_drop_in_only_changes_what_it_must() -> None:
    parser = configparser.ConfigParser(strict=False)
    parser.read_string(OWNER.read_text())
    assert set(parser["Service"]) == {"user", "protecthome", "bindpaths", "environment"}
    assert not re.search(r"^[^#]*%h", OWNER.read_text(), re.MULTILINE)


def test_the_example_names_every_setting_and_nothing_else() -> None:
    known = {row["name"] for row in settings.describe(settings.load({}))}
    keys = {name for one in providers.PROVIDERS for name in (one.key_env, one.base_url_env)}
    # Which cannot stand in the file that it names.
    assert known - set(example_values()) == {"QWEN_PROXY_ENV_FILE"}
    assert set(example_values()) - known - keys == set()


def test_the_example_switches_nothing_on() -> None:
    assert re.findall(r"^[A-Z].*$", EXAMPLE.read_text(), re.MULTILINE) == []


def test_the_example_shows_the_defaults() -> None:
    values = {name: value for name, value in example_values().items() if value}
    shown = settings.load({n: v for n, v in values.items() if n not in SHOWN_BY_EXAMPLE})
    assert rows(shown) == rows(settings.load({}))
    # And the others can be used.
    settings.load(values)
