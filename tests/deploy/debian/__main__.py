"""`sudo python -m tests.deploy.debian TREE`: the README's production lines on a real Debian.

Installs Debian into the directory TREE with debootstrap (once; minutes, 500 MB), boots its systemd
as PID 1 in namespaces without a network, runs the lines of README.md word for word, and looks at
what they promise. Exit status: 0 all is as it should be, 1 something is not, 77 not possible here.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.deploy.debian.machine import Machine, make_tree, obstacle
from tests.kit.secrets import secret
from tests.kit.servers import REPO, wait_until

_KEY: Final = secret("debian-client")
_OTHER_KEY: Final = secret("debian-other")
_CURL: Final = (
    "curl -sS --cacert /etc/qwen-proxy/tls/ca.crt --resolve qwen.lan:443:127.0.0.1 https://qwen.lan"
)
#: A stream that takes some seconds, as the upstream pauses between its events.
_STREAM: Final = (
    f"{_CURL}/v1/chat/completions -N -H 'Authorization: Bearer {_KEY}' "
    "-H 'Content-Type: application/json' -d '"
    + json.dumps(
        {
            "model": "qwen3.7-plus",
            "stream": True,
            "messages": [{"role": "user", "content": "Tell me of the sea, at some length."}],
        }
    )
    + "'"
)
#: Short calls through nginx until a file is there; each line of what it prints is a status.
_SHORT_CALLS: Final = (
    f"while [ ! -e /tmp/enough ]; do {_CURL}/v1/chat/completions -o /dev/null "
    f"-w '%{{http_code}}\\n' -H 'Authorization: Bearer {_KEY}' "
    "-H 'Content-Type: application/json' -d '"
    + json.dumps(
        {
            "model": "qwen3.7-plus",
            "messages": [{"role": "user", "content": "[[sandbox: text=short]]"}],
        }
    )
    + "'; done"
)
_RESTARTS: Final = 20
#: The editor of `sudoedit`: what the operator is told to write.
_EDITOR: Final = f"""#!/bin/sh
cat >>"$1" <<END
QWEN_PROXY_API_KEYS={_KEY}
DASHSCOPE_API_KEY={secret("debian")}
DASHSCOPE_BASE_URL=http://127.0.0.1:9999/compatible-mode/v1
END
"""


def readme_lines() -> list[str]:
    """The lines of the README's section "As a service", up to the one that prints the health."""
    section = (REPO / "README.md").read_text().partition("## As a service")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1].strip().splitlines()


def the_readme(machine: Machine) -> None:
    """Every line of the README works, and the last one prints what it says."""
    printed = ""
    for line in readme_lines():
        if "systemctl enable" in line:
            machine.run(
                "systemd-run --quiet --unit=upstream /opt/qwen-proxy/venv/bin/python "
                "-m qwen_wsgi.sandbox --port 9999 --interval 0.3"
            )
        printed = machine.run(line)
        if "reload nginx" in line:
            time.sleep(1)  # it returns before nginx has done it; a person is slower, too
    assert '"status":"ok"' in printed, printed


def a_stream_through_nginx(machine: Machine) -> None:
    """A client with the key gets a stream by name, with TLS."""
    _ends_well(_begin_stream(machine))


def the_commands(machine: Machine) -> None:
    """status, doctor and clients find the service, and nothing wrong."""
    for command, told in (
        ("sudo qwen-proxy status", "WORKS"),
        ("sudo qwen-proxy doctor", "No problem was found"),
        ("qwen-proxy clients claude-code", "https://qwen.lan"),
    ):
        printed = machine.run(command)
        assert told in printed, f"{command}: no {told!r} in\n{printed}"


def the_other_site(machine: Machine) -> None:
    """Debian's default site is still there."""
    assert "Welcome to nginx" in machine.run("curl -sS http://127.0.0.1/")


def the_journal(machine: Machine) -> None:
    """One line per call, under our name."""
    assert "/v1/chat/completions" in machine.run("journalctl -t qwen-proxy --no-pager")


def the_limits(machine: Machine) -> None:
    """What the unit promises is in force."""
    pid = machine.run("systemctl show -P MainPID qwen-proxy").strip()
    assert re.search(r"^Max core file size +0 +0", machine.run(f"cat /proc/{pid}/limits"), re.M)
    status = machine.run(f"cat /proc/{pid}/status")
    assert re.search(r"^NoNewPrivs:\t1$", status, re.M), status
    assert re.search(r"^CapBnd:\t0+$", status, re.M), status
    group = "system.slice/qwen-proxy.service"
    limit = machine.run(
        f"cat /sys/fs/cgroup/{group}/memory.max 2>/dev/null || "
        f"cat /sys/fs/cgroup/memory/{group}/memory.limit_in_bytes"
    )
    assert limit.strip() == str(4 << 30), limit
    assert machine.run("stat -c '%U %a' /var/lib/qwen-proxy /run/qwen-proxy").splitlines() == [
        "qwen-proxy 700",
        "qwen-proxy 750",
    ]
    told = machine.run("systemd-analyze security qwen-proxy --no-pager").splitlines()[-1]
    exposure = re.search(r"(\d+\.\d+) OK", told)
    assert exposure is not None and float(exposure[1]) < 2, told


def the_tools(machine: Machine) -> None:
    """The service of the tools runs Python in a sandbox that sees nothing of the proxy."""
    for line in (
        "echo '{\"python\": {}}' >/tmp/tools.json",
        "sudo install -m 0640 -g qwen-proxy-tools /tmp/tools.json /etc/qwen-proxy/tools.json",
        "sudo systemctl enable --now qwen-proxy-tools.socket",
        "echo QWEN_PROXY_TOOLS=/etc/qwen-proxy/tools.json >>/etc/qwen-proxy/qwen-proxy.env",
        "sudo systemctl restart qwen-proxy",
    ):
        machine.run(line)
    program = (
        "import os, pathlib\n"
        "print(6 * 7, os.getuid())\n"
        "for path in ('/etc/qwen-proxy', '/var/lib/qwen-proxy', '/run/qwen-proxy-tools'):\n"
        "    print(pathlib.Path(path).exists())\n"
    )
    asked = json.dumps({"code": program})
    told = machine.run(f"sudo qwen-proxy tools call python.run {shlex.quote(asked)}")
    assert re.search(r"42 \d+\s+False\s+False\s+False", told), told
    user = machine.run("ps -o user:32= -p $(systemctl show -P MainPID qwen-proxy-tools)")
    assert user.strip() == "qwen-proxy-tools"
    machine.run("sudo systemctl kill -s KILL qwen-proxy-tools")
    assert "42" in machine.run(f"sudo qwen-proxy tools call python.run {shlex.quote(asked)}")
    machine.run("sudo systemctl disable --now qwen-proxy-tools.socket qwen-proxy-tools.service")
    machine.run("sed -i /QWEN_PROXY_TOOLS=/d /etc/qwen-proxy/qwen-proxy.env")
    machine.run("sudo systemctl restart qwen-proxy")


def a_reload(machine: Machine) -> None:
    """Workers are replaced; streams that run and begin meanwhile go on to their ends."""
    before = _workers(machine)
    stream = _begin_stream(machine)
    machine.run("sudo systemctl reload qwen-proxy")
    a_stream_through_nginx(machine)
    _ends_well(stream)
    wait_until(lambda: _workers(machine) and not _workers(machine) & before, "new workers alone")
    # Not before: an old one that answers tells that it stops.
    _is_healthy(machine)


def settings_by_a_reload(machine: Machine) -> None:
    """A reload takes a new key; one with a bad setting changes nothing, and status says why."""
    file = "/etc/qwen-proxy/qwen-proxy.env"
    assert machine.run(f"stat -c '%U %G %a' {file}") == "root qwen-proxy-env 640\n"
    assert "www-data" not in machine.run("getent group qwen-proxy-env")
    models = f"{_CURL}/v1/models -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer "
    machine.run(f"cp {file} /tmp/before && echo OPENAI_API_KEY={_OTHER_KEY} >>{file}")
    machine.run("sudo systemctl reload qwen-proxy")
    wait_until(lambda: machine.run(f"{models}{_OTHER_KEY}'") == "200", "the new key is taken")
    machine.run(f"echo QWEN_PROXY_WORKERS=many >>{file} && sudo systemctl reload qwen-proxy")
    wait_until(
        lambda: (
            "settings not reloaded: bad setting: QWEN_PROXY_WORKERS='many'"
            in machine.run("systemctl status qwen-proxy --no-pager")
        ),
        "systemctl status tells of it",
    )
    assert machine.run(f"{models}{_OTHER_KEY}'") == "200"
    assert "stay as they were" in machine.run("journalctl -t qwen-proxy -p err --no-pager")
    machine.run(f"cat /tmp/before >{file} && sudo systemctl reload qwen-proxy")
    wait_until(lambda: machine.run(f"{models}{_OTHER_KEY}'") == "401", "the key is gone")


def a_restart(machine: Machine) -> None:
    """The stream that runs goes on to its end; the next call is answered after it."""
    stream = _begin_stream(machine)
    machine.run("sudo systemctl restart qwen-proxy")
    _ends_well(stream)
    _is_healthy(machine)


def restarts_with_the_socket(machine: Machine) -> None:
    """With the socket unit no call is lost in 20 restarts, and doctor is content."""
    machine.run(
        "sudo systemctl stop qwen-proxy && sudo systemctl enable --now qwen-proxy.socket && "
        "sudo systemctl start qwen-proxy"
    )
    machine.run("rm -f /tmp/enough")
    clients = [
        subprocess.Popen(machine.command(_SHORT_CALLS), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        for _ in range(_RESTARTS):
            machine.run("sudo systemctl restart qwen-proxy")
            _is_healthy(machine)  # systemd does not wait for the workers
    finally:
        machine.run("touch /tmp/enough")
        statuses = [word for each in clients for word in each.communicate()[0].split()]
    assert set(statuses) == {"200"}, Counter(statuses)
    assert len(statuses) > _RESTARTS, statuses
    printed = machine.run("sudo qwen-proxy doctor")
    assert "calls wait during a restart" in printed, printed


def a_crash(machine: Machine) -> None:
    """A killed master is started again."""
    pid = machine.run("systemctl show -P MainPID qwen-proxy").strip()
    machine.run("systemctl kill --kill-whom=main --signal=KILL qwen-proxy")
    wait_until(
        lambda: (
            machine.run("systemctl show -P MainPID qwen-proxy").strip() not in ("0", pid)
            and '"status":"ok"' in machine.run(f"{_CURL}/health", check=False)
        ),
        "it is started again",
    )


def an_upgrade(machine: Machine) -> None:
    """`make install` alone keeps name, certificate and settings."""
    assert "Upgraded" in machine.run("sudo make install")
    machine.run("sudo systemctl restart qwen-proxy")
    _is_healthy(machine)


def a_stop(machine: Machine) -> None:
    """nginx says so to clients, and status says how to start it."""
    machine.run("sudo systemctl disable --now qwen-proxy.socket")
    machine.run("sudo systemctl stop qwen-proxy")
    assert "proxy_unavailable" in machine.run(f"{_CURL}/health")
    assert machine.run("systemctl is-active qwen-proxy", check=False) == "inactive\n"
    assert "systemctl" in machine.run("sudo qwen-proxy doctor", check=False)


def the_end(machine: Machine) -> None:
    """`make uninstall PURGE=1` leaves nothing, and nginx as it was."""
    machine.run("sudo make uninstall PURGE=1")
    machine.run("sudo nginx -t && sudo systemctl reload nginx")
    left = "ls -d /opt/qwen-proxy /etc/qwen-proxy /var/lib/qwen-proxy /usr/local/bin/qwen-proxy"
    assert "/opt" not in machine.run(f"{left} 2>/dev/null", check=False)
    the_other_site(machine)


#: In this order, each on what the ones before it left.
_CHECKS: Final[tuple[Callable[[Machine], None], ...]] = (
    *(the_readme, a_stream_through_nginx, the_commands, the_other_site, the_journal, the_limits),
    the_tools,
    *(a_reload, settings_by_a_reload, a_restart, restarts_with_the_socket, a_crash),
    *(an_upgrade, a_stop, the_end),
)


def _workers(machine: Machine) -> set[str]:
    pid = machine.run("systemctl show -P MainPID qwen-proxy").strip()
    return set(machine.run(f"cat /proc/{pid}/task/{pid}/children").split())


def _begin_stream(machine: Machine) -> subprocess.Popen[str]:
    """A stream whose first event has come."""
    stream = subprocess.Popen(machine.command(_STREAM), stdout=subprocess.PIPE, text=True)
    assert stream.stdout is not None
    first = stream.stdout.readline()
    assert first.startswith("data: "), first + stream.stdout.read()
    return stream


def _ends_well(stream: subprocess.Popen[str]) -> None:
    rest = stream.communicate(timeout=60)[0]
    assert rest.rstrip().endswith("data: [DONE]"), f"the stream ended so: {rest[-500:]}"


def _is_healthy(machine: Machine) -> None:
    told = machine.run(f"{_CURL}/health")
    assert '"status":"ok"' in told, told


def main() -> int:
    """Make the tree, boot it, and make the checks; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.debian", description=__doc__)
    parser.add_argument("tree", type=Path, help="the directory of the system, kept for next time")
    parser.add_argument(
        "--mirror", default="http://deb.debian.org/debian", help="default %(default)s"
    )
    options = parser.parse_args()
    tree = options.tree.resolve()
    if reason := obstacle(tree):
        print(f"not possible here: {reason}", file=sys.stderr)
        return 77
    make_tree(tree, options.mirror)
    editor = tree / "usr/local/bin/edit"
    editor.write_text(_EDITOR)
    editor.chmod(0o755)
    failed = 0
    with Machine(tree, tree.with_name(f"{tree.name}.log")) as machine:
        # What a run that failed has left.
        machine.run("make uninstall PURGE=1 && systemctl restart nginx")
        for check in _CHECKS:
            began_s = time.monotonic()
            try:
                check(machine)
            except AssertionError as error:
                failed += 1
                print(f"FAILED  {check.__doc__}\n{error}")
            else:
                print(f"ok      {check.__doc__} ({time.monotonic() - began_s:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
