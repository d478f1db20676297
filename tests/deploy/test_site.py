"""The shell functions that write the nginx site and say how the machine is reached."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kit.servers import REPO

HOSTNAME = """#!/bin/sh
case ${1-} in
'') echo debian ;;
-f) [ %(resolves)s = yes ] && echo debian.lan ;;
-I) echo '192.168.7.20 fd00::20 ' ;;
esac
"""


def run(directory: Path, resolves: str, command: str) -> list[str]:
    """Call a function as install.sh does, on a machine with a hostname(1) of its own; its words."""
    program = directory / "hostname"
    program.write_text(HOSTNAME % {"resolves": resolves})
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-euc", f"PATH={directory}:$PATH; . install/site.sh; {command}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("resolves", "full"),
    [
        ("yes", ["debian.lan"]),
        ("no", []),  # as on a fresh machine whose name is not in /etc/hosts: `hostname -f` fails
    ],
)
def test_the_machine_is_known_by_the_names_that_it_has(
    tmp_path: Path, resolves: str, full: list[str]
) -> None:
    names = ["qwen.lan", "localhost", "debian", *full]
    assert run(tmp_path, resolves, "server_names qwen.lan ''") == names
    addresses = [*names, "192.168.7.20", "127.0.0.1"]
    assert run(tmp_path, resolves, "server_names qwen.lan '' addresses") == addresses
    site = run(tmp_path, resolves, "write_site qwen.lan internal '' /etc/qwen-proxy/tls")
    at = site.index("server_name")
    assert site[at : at + len(names) + 2] == [
        "server_name",
        "qwen-proxy",
        *names[:-1],
        names[-1] + ";",
    ]


def test_a_staged_tree_has_no_names_of_this_machine(tmp_path: Path) -> None:
    assert run(tmp_path, "no", "server_names qwen.lan /stage addresses") == [
        "qwen.lan",
        "localhost",
        "127.0.0.1",
    ]
