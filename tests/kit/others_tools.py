"""Tools of others that `make clients` installs: MCP servers, and a Python with matplotlib."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client_programs import INSTALLED
from tests.kit.processes import free_port
from tests.kit.sandboxes import without_sandbox
from tests.kit.servers import wait_until

FOLDER = INSTALLED.resolve()
EVERYTHING = FOLDER / "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
FILES = FOLDER / "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js"
TIME = FOLDER / "tools/bin/mcp-server-time"
PYTHON = FOLDER / "tools/bin/python"

_READ = [str(FOLDER)]


def obstacle() -> str:
    """Why tests with them cannot run here; "" if they can."""
    for path in (EVERYTHING, FILES, TIME):
        if not path.exists():
            return f"{path.name} is not installed (make clients)"
    for folder in FOLDER.parents if os.geteuid() == 0 else ():
        if not folder.stat().st_mode & 0o001:
            return f"the user of the sandbox cannot pass {folder}"
    return without_sandbox()


MARKS = [
    pytest.mark.server,
    pytest.mark.clients,
    pytest.mark.skipif(bool(obstacle()), reason=obstacle()),
]


def time_server() -> dict[str, Any]:
    """The entry of tools.json of `mcp-server-time`."""
    return {"command": str(TIME), "read": _READ}


def everything() -> dict[str, Any]:
    """That of `server-everything` over stdio."""
    return {"command": "node", "args": [str(EVERYTHING), "stdio"], "read": _READ}


def files(folder: Path) -> dict[str, Any]:
    """That of `server-filesystem`, for a folder that it may change."""
    command = {"command": "node", "args": [str(FILES), str(folder)]}
    return {**command, "read": _READ, "write": [str(folder)]}


@contextlib.contextmanager
def listening(kind: str) -> Iterator[int]:
    """`server-everything` as a server of its own, over `streamableHttp` or `sse`; its port."""
    port = free_port()
    process = subprocess.Popen(
        ["node", str(EVERYTHING), kind],
        env={"PATH": os.environ["PATH"], "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _takes_connections(port), f"{kind} takes connections")
        yield port
    finally:
        process.kill()
        process.wait()


def _takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
