"""How many Python functions a call costs, against the numbers that are kept in calls.json.

    python -m benchmarks.calls            print the numbers; fail where they grew by more than 5 %
    python -m benchmarks.calls --keep     write down what was counted, for this version of Python

Time moves with the machine; how many functions are called does not, and most of our time goes with
it. Counted is one worker of a real server with a key that has all limits. Functions that are
written in C are not counted, and versions of Python differ, so each has numbers of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from benchmarks import load, servers
from benchmarks.servers import CLIENT_KEY, Target
from tests.kit import processes
from tests.kit.processes import REPOSITORY, StartError

#: What is counted, by name.
KINDS: Final = {
    "chat": load.chat("fast"),
    "chat, stream of 1 chunk": load.chat("fast", stream=True),
    "chat, stream of 200 chunks": load.chat("fast", stream=True, chunks=200),
    "responses, stream of 20 chunks": load.responses("fast", chunks=20),
    "messages, stream of 20 chunks": load.messages("fast", chunks=20),
}

#: A call may cost so much more than what was kept.
_TOLERANCE: Final = 0.05

_KEPT: Final = Path(__file__).with_name("calls.json")
_WARM_UP: Final = 60
_COUNTED: Final = 200
_CONCURRENCY: Final = 8

#: How long a worker may take to write down what it has counted.
_ANSWER_S: Final = 20.0

#: Nothing else sends it to a worker.
_TELL: Final = signal.SIGPROF

#: One function: its name, how often it was called, and by whom how often.
Called = tuple[str, int, list[tuple[str, int]]]

# In the worker


def count(result: str) -> None:
    """Count the calls of this process from now on, and write them as JSON to `result` at each
    signal."""
    called: collections.Counter[tuple[CodeType, CodeType | None]] = collections.Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            caller = frame.f_back
            called[frame.f_code, None if caller is None else caller.f_code] += 1

    def write(signum: int, frame: FrameType | None) -> None:
        sys.setprofile(None)
        rows = [
            (name_of(code), "the loop" if caller is None else name_of(caller), times)
            for (code, caller), times in called.items()
        ]
        half = Path(result + ".half")
        half.write_text(json.dumps(rows))
        half.rename(result)
        sys.setprofile(note)

    signal.signal(_TELL, write)
    sys.setprofile(note)


def name_of(code: CodeType) -> str:
    """Where a function is: its file without what is before the package, its line, its name."""
    path = code.co_filename
    for root in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(REPOSITORY)):
        path = path.removeprefix(root + "/")
    return f"{path}:{code.co_firstlineno} {code.co_qualname}"


# From outside


class Counting:
    """A server whose worker counts its calls.

    Args:
        key: the key that its requests are sent with.
    """

    def __init__(self, target: Target, result: Path, key: str) -> None:
        self._target = target
        self._result = result
        self._key = key.encode()

    def of(self, request: bytes, count: int) -> list[Called]:
        """The calls of so many requests, the most frequent first."""
        request = request.replace(CLIENT_KEY.encode(), self._key)
        asyncio.run(load.hammer(self._target, request, _WARM_UP, _CONCURRENCY))
        before = self._told()
        asyncio.run(load.hammer(self._target, request, count, _CONCURRENCY))
        more = self._told() - before
        callers: dict[str, list[tuple[str, int]]] = {}
        for (name, caller), times in more.most_common():
            callers.setdefault(name, []).append((caller, times))
        rows = [(name, sum(times for _, times in told), told) for name, told in callers.items()]
        return sorted(rows, key=lambda row: -row[1])

    def _told(self) -> collections.Counter[tuple[str, str]]:
        self._result.unlink(missing_ok=True)
        assert self._target.pid is not None
        _, worker, *_ = processes.tree(self._target.pid)
        os.kill(worker, _TELL)
        end_s = time.monotonic() + _ANSWER_S
        while not self._result.exists():
            if time.monotonic() > end_s:
                raise StartError("the worker did not tell what it had counted")
            time.sleep(0.01)
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for name, caller, times in json.loads(self._result.read_text()):
            found[name, caller] += times
        return found


@contextmanager
def counting() -> Iterator[Counting]:
    """A server with one worker that counts, its upstream, and a key with limits."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen-proxy-calls-"))
        )
        result, config = directory / "result.json", directory / "gunicorn.conf.py"
        config.write_text(servers.calling("calls", "count", str(result)))
        up = stack.enter_context(servers.upstream())
        limited = servers.limited(up, workers=1, directory=directory, config=config)
        target, key = stack.enter_context(limited)
        yield Counting(target, result, key)


# The numbers that are kept


def kept(version: str) -> dict[str, float]:
    """The numbers for a version of Python; none for one that nobody has counted with."""
    found: dict[str, float] = json.loads(_KEPT.read_text()).get(version, {})
    return found


def keep(version: str, numbers: Mapping[str, float]) -> None:
    """Write the numbers for a version of Python down."""
    everything = json.loads(_KEPT.read_text()) if _KEPT.exists() else {}
    everything[version] = {name: round(number, 1) for name, number in numbers.items()}
    _KEPT.write_text(json.dumps(dict(sorted(everything.items())), indent=2) + "\n")


def judged(numbers: Mapping[str, float], before: Mapping[str, float]) -> tuple[list[str], bool]:
    """The lines of the table, and whether no number has grown too much."""
    lines, well = [], True
    for name, number in numbers.items():
        then = before.get(name)
        if then is None:
            lines.append(f"{number:9.1f}  {name}: nothing is kept to compare with")
            continue
        more = number / then - 1
        verdict = ""
        if more > _TOLERANCE:
            verdict, well = "  TOO MANY", False
        elif more < -_TOLERANCE:
            verdict = "  fewer: --keep writes it down"
        lines.append(f"{number:9.1f}  {name}: {more:+.1%} ({then:.1f} are kept){verdict}")
    return lines, well


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print, and compare or keep."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", action="store_true", help="write the numbers down")
    arguments = parser.parse_args(argv)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        with counting() as counted:
            numbers = {
                name: sum(row[1] for row in counted.of(request, _COUNTED)) / _COUNTED
                for name, request in KINDS.items()
            }
    except (StartError, load.LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    lines, well = judged(numbers, kept(version))
    print(f"Calls of Python functions per call, Python {version}:", *lines, sep="\n")
    if arguments.keep:
        keep(version, numbers)
        return 0
    if not well:
        print(
            "A call costs more than 5 % more functions than it did. See which with\n"
            "    python -m benchmarks.profile_request setup --calls\n"
            "and, if they are worth it, write the new numbers down with --keep.",
            file=sys.stderr,
        )
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
