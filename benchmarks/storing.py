"""What other calls wait longer because responses are being stored, with requests of 8 MB.

    python -m benchmarks.storing

One worker answers small calls, 200 a second, while another client sends large requests to
`/v1/responses`; with `store`, and the same without. The rounds take turns. A small call is one that
the event loop answers by itself (`/health/live`), so it takes as long as the loop keeps it waiting.
Prints the percentiles of how long small calls took, and the 99th of each round. Exits with 1 if the
goal is not met.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import load
from benchmarks.servers import Target, proxy, upstream

#: What storing may add to the 99th percentile.
GOAL_MS: Final = 5.0
_MEGABYTES: Final = 8
_ROUNDS: Final = 5
_ROUND_S: Final = 12.0
#: Between the begins of two large requests; and between two small calls.
_LARGE_EVERY_S: Final = 0.5
_SMALL_EVERY_S: Final = 0.005

_PROBE: Final = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def _large(store: bool) -> bytes:
    body: dict[str, Any] = {"model": "fast", "store": store}
    body["input"] = load.text_content() * _MEGABYTES
    return load.request("/v1/responses", body)


def _send_large(target: Target, store: bool, for_s: float) -> None:
    """Send large requests at a steady pace; in a process of its own."""

    async def work() -> None:
        request, connection = _large(store), await load.connect(target)
        until = time.monotonic() + for_s
        while (begun := time.monotonic()) < until:
            await connection.send(request)
            await asyncio.sleep(max(0.0, begun + _LARGE_EVERY_S - time.monotonic()))
        connection.close()

    asyncio.run(work())


def _small_ms(target: Target, for_s: float) -> list[float]:
    """How long small calls took, milliseconds, from when each was due: one that could not be sent
    in time, because the one before it waited, has waited as well."""
    times = []
    with socket.create_connection(("127.0.0.1", target.port), timeout=60) as connection:
        due = time.monotonic()
        until = due + for_s
        while due < until:
            time.sleep(max(0.0, due - time.monotonic()))
            connection.sendall(_PROBE)
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise load.LoadError(f"unexpected answer: {answer[:200]!r}")
            times.append((time.monotonic() - due) * 1e3)
            due += _SMALL_EVERY_S
    return times


def _round(target: Target, store: bool) -> list[float]:
    process = multiprocessing.Process(target=_send_large, args=(target, store, _ROUND_S))
    process.start()
    try:
        time.sleep(1.0)  # until its first request is made
        times = _small_ms(target, _ROUND_S - 1.5)
    finally:
        process.join()
    if process.exitcode:
        raise load.LoadError("the large requests failed")
    return times


def _stored(home: Path) -> int:
    """The bytes of the largest file that the proxy has stored anything in."""
    files = home.rglob("*.sqlite3*")
    return max((file.stat().st_size for file in files), default=0)


def main() -> int:
    """Print a line for each of both, and what storing adds."""
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    with (
        tempfile.TemporaryDirectory(prefix="qwen-storing-") as directory,
        upstream() as up,
        proxy(up, workers=1, directory=Path(directory)) as target,
    ):
        for _ in range(_ROUNDS):
            for store, rounds in found.items():
                rounds.append(_round(target, store))
        if _stored(Path(directory)) < _MEGABYTES * 1e6:
            raise load.LoadError("nothing was stored")
    p99 = {}
    for store, rounds in found.items():
        cuts = [statistics.quantiles(each, n=1000) for each in rounds]
        each_ms = [[cut[at] for cut in cuts] for at in (499, 949, 989, 998)]
        shown = " ".join(f"{statistics.median(times):7.2f}" for times in each_ms)
        p99[store] = statistics.median(each_ms[2])
        print(f"{'stored' if store else 'not stored':10}  p50 p95 p99 p99.9, ms: {shown}")
        print(f"  p99 of each round: {', '.join(f'{time_ms:.1f}' for time_ms in each_ms[2])}")
    added = p99[True] - p99[False]
    met = added <= GOAL_MS
    print(f"storing adds {added:.1f} ms at p99; goal ≤ {GOAL_MS:g} {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
