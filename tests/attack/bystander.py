"""A client that does no harm: asks all the time, and notes how long it waits.

In a process of its own, with an upstream of its own, so that it measures the proxy and not the
attackers beside it. Prints its upstream's port; then reads `{"port", "key", "pids"}`, and asks
until its standard input ends. Prints `{"asked", "waits_s", "served_s", "faults"}`: the longest
waits, longest first; and how long they are without the time in which one of those concerned was
ready to run and had no CPU. A machine that is busy with something else is no fault of the proxy's.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from qwen_wsgi.sandbox import Sandbox
from tests.kit.processes import starved_each
from tests.kit.raw_client import chat

_EVERY_S: Final = 0.02
_ANSWER_S: Final = 30.0
#: So many of the longest waits are told, and of the faults.
_TOLD: Final = 100


def _ask(port: int, key: str, number: int) -> str:
    """Make one request on a connection of its own; what is wrong with the answer, or nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    headers = {"Authorization": f"Bearer {key}", "X-Qwen-Account": "dashscope"}
    try:
        if number % 3 == 0:
            connection.request("GET", "/health", headers=headers)
        else:
            stream = number % 3 == 1
            body = json.dumps(chat("[[sandbox: chunks=3]]", stream=stream))
            connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        told = response.read()
        if response.status != 200:
            return f"{response.status} {told[:200]!r}"
        return "" if number % 3 != 1 or b"[DONE]" in told else f"no end: {told[-100:]!r}"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def _watch(port: int, key: str, pids: Sequence[int]) -> dict[str, Any]:
    waits: list[tuple[float, float]] = []
    faults: list[str] = []
    asked = 0
    concerned = [*pids, os.getpid()]
    while not select.select([sys.stdin], [], [], _EVERY_S)[0]:
        before, began_s = starved_each(concerned), time.monotonic()
        fault = _ask(port, key, asked)
        took_s = time.monotonic() - began_s
        # Which worker answered is not known: the one that waited longest may have.
        *workers, own_s = (b - a for a, b in zip(before, starved_each(concerned), strict=True))
        waits.append((took_s, took_s - max(workers) - own_s))
        asked += 1
        if fault and len(faults) < _TOLD:
            faults.append(fault)
    return {
        "asked": asked,
        "waits_s": sorted((took for took, _ in waits), reverse=True)[:_TOLD],
        "served_s": sorted((served for _, served in waits), reverse=True)[:_TOLD],
        "faults": faults,
    }


def main() -> None:
    with Sandbox() as sandbox:
        print(sandbox.origin.rpartition(":")[2], flush=True)
        told = json.loads(sys.stdin.readline() or "null")
        if told is not None:
            print(json.dumps(_watch(**told)), flush=True)


if __name__ == "__main__":
    main()
