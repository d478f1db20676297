"""A fake machine with the service and nginx as `make install` leaves them."""

from __future__ import annotations

from collections.abc import Callable

from qwen_wsgi.doctor.machine import Ran
from qwen_wsgi.settings import Settings
from tests.fakes.machine import FakeMachine
from tests.kit.servers import SITE

#: Makes settings of an environment.
Load = Callable[..., Settings]

SHIPPED_SITE = SITE.read_text()
ENV_FILE = "/etc/qwen-proxy/qwen-proxy.env"

#: As systemd 252 tells the unit that `make install` brings.
GOOD_UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "Result": "success",
    "ExecMainStatus": "0",
    "NRestarts": "0",
    "NeedDaemonReload": "no",
    "User": "qwen-proxy",
    "Group": "qwen-proxy",
    "ExecStart": "{ path=/opt/qwen-proxy/venv/bin/python ; argv[]=/opt/… serve ; }",
    "SupplementaryGroups": "qwen-proxy-env",
    "Environment": "QWEN_PROXY_BIND=unix:/run/qwen-proxy/http.sock QWEN_PROXY_SANDBOX=0 "
    f"QWEN_PROXY_ENV_FILE={ENV_FILE}",
    "EnvironmentFiles": "",
    "StateDirectory": "qwen-proxy",
    "DropInPaths": "",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "BindPaths": "",
    "BindReadOnlyPaths": "",
    "ReadWritePaths": "",
    "LimitNOFILE": "16384",
    "TimeoutStopUSec": "1min 40s",
}


def install_unit(machine: FakeMachine, **changes: str) -> None:
    """Have `systemctl show` print the unit, with these properties changed."""
    shown = "".join(f"{name}={value}\n" for name, value in {**GOOD_UNIT, **changes}.items())
    machine.programs["systemctl"] = Ran(0, shown, "")


def write_env_file(machine: FakeMachine, text: str) -> None:
    path = machine.root / ENV_FILE.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install_nginx(machine: FakeMachine) -> None:
    """nginx with our site, as `make install` leaves it."""
    machine.programs["nginx"] = Ran(0, "", "")
    machine.uid = 0
    machine.groups["qwen-proxy"] = ("www-data",)
    for name in ("sites-available", "sites-enabled", "conf.d"):
        (machine.root / "etc/nginx" / name).mkdir(parents=True)
    (machine.root / "etc/nginx/nginx.conf").write_text("user www-data;\nevents {}\n")
    (machine.root / "run").mkdir()
    (machine.root / "run/nginx.pid").write_text("42\n")
    (machine.root / "proc/42").mkdir(parents=True)
    write_site(machine, SHIPPED_SITE)


def write_site(machine: FakeMachine, text: str) -> None:
    site = machine.root / "etc/nginx/sites-available/qwen-proxy.conf"
    site.write_text(text)
    link = machine.root / "etc/nginx/sites-enabled/qwen-proxy.conf"
    link.unlink(missing_ok=True)
    link.symlink_to("../sites-available/qwen-proxy.conf")
