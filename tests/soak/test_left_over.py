"""What the soak says of files that a worker has open; no server is needed for it."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kit import open_files
from tests.kit.open_files import OpenFiles
from tests.soak.run import Result
from tests.soak.town import Look


def seen(other: Counter[str], **running: int) -> Look:
    """A worker that has nothing else."""
    files = OpenFiles(0, 0, other)
    return Look(1, 0, files, 1, 0.0, 0.0, 0.0, running, objects={}, cycles={})


def test_a_file_that_is_left_is_named() -> None:
    first = seen(Counter({"/state/calls": 1, "pipe:[7]": 2}))
    last = seen(Counter({"/state/calls": 2, "pipe:[7]": 2, "socket:[9] (unix)": 1}))

    assert Result._left_over(first, first) == []
    assert Result._left_over(first, last) == [
        "worker 1: other_files went from 3 to 5: /state/calls, socket:[9] (unix)"
    ]


def test_a_greenlet_that_is_left_is_named() -> None:
    first, last = seen(Counter(), watch=2), seen(Counter(), watch=2, relay=1)

    assert Result._left_over(first, last) == ["worker 1: greenlets went from 2 to 3: relay"]


def connected(stack: ExitStack) -> tuple[socket.socket, int]:
    """A connection's end at the server, and the port of the server."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.enter_context(socket.create_connection(server.getsockname()))
    end, _ = server.accept()
    return stack.enter_context(end), server.getsockname()[1]


def test_connections_are_told_from_other_files(tmp_path: Path) -> None:
    path, pid = tmp_path / "file", os.getpid()
    with ExitStack() as stack:
        _, port = connected(stack)
        _, upstream = connected(stack)
        before = open_files.look([pid], port, {upstream})[pid]
        stack.enter_context(path.open("w"))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(tmp_path / "local"))
        inode = os.fstat(local.fileno()).st_ino

        found = open_files.look([pid], port, {upstream})[pid]

    assert (found.client, found.upstream) == (1, 1)
    assert found.total == before.total + 2
    assert found.more_than(before) == f"{path}, socket:[{inode}] (unix {tmp_path}/local)"


@pytest.mark.parametrize("comes", [True, False])
def test_a_connection_that_comes_or_goes_meanwhile_is_no_other_file(
    monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """The list of connections that the system gives may not have it."""
    looks = iter(
        (["/log"], ["/log", "socket:[1]"]) if comes else (["/log", "socket:[1]"], ["/log"])
    )

    def names(pid: int) -> Iterator[str]:
        yield from next(looks)

    monkeypatch.setattr(open_files, "names", names)

    assert open_files.look([1], 80, {443}) == {1: OpenFiles(0, 0, Counter({"/log": 1}))}
