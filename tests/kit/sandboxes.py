"""Whether sandboxes work on this machine, and which processes are still there."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qwen_wsgi.tool_runner.sandbox import Bounds, Sandbox
from qwen_wsgi.tool_runner.toolbox import works


@contextlib.contextmanager
def open_folder(name: str = "") -> Iterator[Path]:
    """A folder below /tmp that every user can pass; pytest's own is closed to all but its user."""
    folder = Path("/tmp") / name if name else Path(tempfile.mkdtemp(dir="/tmp"))
    folder.mkdir(exist_ok=not name)
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@functools.cache
def without_sandbox() -> str:
    """Why there can be no sandbox on this machine; "" if there can."""
    return asyncio.run(works(Sandbox(Bounds(256 << 20, 40, 16 << 20), private=[])))


def processes_with(marker: str) -> list[str]:
    """The processes that have a text in their environment or command line, as `PID name`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            if marker.encode() in text:
                found.append(f"{folder.name} {(folder / 'comm').read_text().strip()}")
    return found
