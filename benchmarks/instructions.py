"""How many instructions of the processor a call takes in user space, counted by valgrind.

    python -m benchmarks.instructions [OTHER_CHECKOUT]

Needs Debian's `valgrind`. One worker, the key of the environment. Counted is the thread that
serves, less what it does in the same time without a call (under valgrind a call takes so long that
this would be a tenth). Other work on the machine does not move the count, so a change of 1 % can
be seen; but it says nothing of the kernel's part and of memory. With another checkout its server
is counted as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import load, servers
from benchmarks.servers import Target
from tests.kit import processes
from tests.kit.processes import REPOSITORY

#: What is counted: a request, and how many of them.
_KINDS: Final = {
    "a whole answer": (load.chat("fast"), 300),
    "a stream of one chunk": (load.chat("fast", stream=True), 300),
    "a stream of 1000 chunks at once": (load.chat("fast", stream=True, chunks=1000), 20),
    "Responses, a stream of 20 chunks": (load.responses("fast", chunks=20), 60),
    "Messages, a stream of 20 chunks": (load.messages("fast", chunks=20), 60),
}

_TOTAL: Final = re.compile(r"^totals: (\d+)", re.MULTILINE)
_CONCURRENCY: Final = 4
_WARM_UP: Final = 60


def _pipe(directory: Path) -> str:
    """Where valgrind listens."""
    return f"--vgdb-prefix={directory}/vgdb"


#: valgrind names the files by which it listens after variables of its process: HOST is a setting of
#: the server, and it has no LOGNAME.
_LIKE_THE_SERVER: Final = {"HOST": "127.0.0.1", "PATH": os.environ.get("PATH", os.defpath)}


class _Worker:
    """A worker under valgrind, which writes its counts into a directory."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid = pid
        self._directory = directory

    def counted(self, work: Callable[[], object]) -> int:
        """Instructions of its first thread, while some work is done."""
        before = self._dumps()
        self._control("-i", "on")
        work()
        self._control("-i", "off")
        self._control("-d")
        # Each dump has what came after the one before; switching writes one as well.
        dumps = self._dumps() - before
        return sum(int(n) for dump in dumps for n in _TOTAL.findall(dump.read_text()))

    def _dumps(self) -> set[Path]:
        return {*self._directory.glob(f"callgrind.{self._pid}*-01")}

    def _control(self, *arguments: str) -> None:
        command = ["callgrind_control", _pipe(self._directory), *arguments, str(self._pid)]
        subprocess.run(command, env=_LIKE_THE_SERVER, capture_output=True, check=True)


def _of_a_call(worker: _Worker, target: Target, request: bytes, count: int) -> float:
    """Instructions per request, while so many are answered."""

    def ask(times: int) -> None:
        asyncio.run(load.hammer(target, request, times, _CONCURRENCY))

    ask(_WARM_UP)
    began = time.monotonic()
    busy = worker.counted(lambda: ask(count))
    took_s = time.monotonic() - began
    assert busy, "valgrind has counted nothing"
    return (busy - worker.counted(lambda: time.sleep(took_s))) / count


def count(root: Path) -> dict[str, float]:
    """Instructions of each kind of call, of the server of a checkout."""
    with tempfile.TemporaryDirectory(prefix="qwen-instructions-") as name:
        directory = Path(name)
        under = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--trace-children=yes"]
        under += ["--separate-threads=yes"]
        under += [f"--callgrind-out-file={directory}/callgrind.%p", _pipe(directory)]
        with (
            servers.upstream() as up,
            servers.proxy(up, workers=1, directory=directory, root=root, under=under) as target,
        ):
            assert target.pid is not None
            (pid,) = set(processes.tree(target.pid)) - {target.pid}
            worker = _Worker(pid, directory)
            return {
                kind: _of_a_call(worker, target, request, times)
                for kind, (request, times) in _KINDS.items()
            }


def main() -> int:
    """Print the counts of this checkout, and of another one beside it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, nargs="?", help="another checkout")
    arguments = parser.parse_args()
    before = {} if arguments.before is None else count(arguments.before)
    for kind, now in count(REPOSITORY).items():
        then = f", {now / before[kind]:.3f} of {before[kind]:12,.0f}" if before else ""
        print(f"{kind:34} {now:12,.0f}{then}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
