"""How many instructions of the processor a call takes in user space, counted by valgrind.

    python -m benchmarks.instructions [OTHER_CHECKOUT]

Needs Debian's `valgrind`. One worker, the key of the environment. Other work on the machine does
not move the count, so a change of 1 % can be seen; but it says nothing of the kernel's part and of
memory. With another checkout its server is counted as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
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


def _counted(pid: int, target: Target, request: bytes, count: int, directory: Path) -> float:
    """Instructions of one process per request, while so many are answered."""

    def control(*arguments: str) -> None:
        command = ["callgrind_control", _pipe(directory), *arguments, str(pid)]
        subprocess.run(command, env=_LIKE_THE_SERVER, capture_output=True, check=True)

    asyncio.run(load.hammer(target, request, _WARM_UP, _CONCURRENCY))
    before = {*directory.glob(f"callgrind.{pid}*")}
    control("-i", "on")
    asyncio.run(load.hammer(target, request, count, _CONCURRENCY))
    control("-i", "off")
    control("-d")
    # Each dump has what came after the one before; switching writes one as well.
    dumps = {*directory.glob(f"callgrind.{pid}*")} - before
    found = [int(n) for dump in dumps for n in _TOTAL.findall(dump.read_text())]
    assert sum(found), "valgrind has counted nothing"
    return sum(found) / count


def count(root: Path) -> dict[str, float]:
    """Instructions of each kind of call, of the server of a checkout."""
    with tempfile.TemporaryDirectory(prefix="qwen-instructions-") as name:
        directory = Path(name)
        under = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--trace-children=yes"]
        under += [f"--callgrind-out-file={directory}/callgrind.%p", _pipe(directory)]
        with (
            servers.upstream() as up,
            servers.proxy(up, workers=1, directory=directory, root=root, under=under) as target,
        ):
            assert target.pid is not None
            (worker,) = set(processes.tree(target.pid)) - {target.pid}
            return {
                kind: _counted(worker, target, request, times, directory)
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
