"""Programs of their own processes around a server, so that it is measured and not its tests.

`python -m tests.kit.crowd send PORT BYTES` sends one chat with a picture of so many bytes, and
prints the status of the answer. `python -m tests.kit.crowd watch PORT PID` asks for /health again
and again until its stdin ends; PID is the worker. It prints `{"stall_s", "asked"}`. The client key
is in KEY.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.kit.processes import cpu_s

_PAUSE_S: Final = 0.02


def send(port: int, size: int) -> None:
    """Send one chat, and print the status."""
    picture = "data:image/png;base64," + "A" * size
    parts = [{"type": "image_url", "image_url": {"url": picture}}]
    chat = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": parts}]}
    print(_ask(port, "POST", "/v1/chat/completions", json.dumps(chat)))


def watch(port: int, worker: int) -> None:
    """Ask until stdin ends, and print for how long the worker let an answer wait at most.

    A machine that runs other things lets it wait, too, which is no fault of the worker: of a wait
    counts what the worker used of the CPU meanwhile.
    """
    stall_s, asked = 0.0, 0
    while not select.select([sys.stdin], [], [], _PAUSE_S)[0]:
        before_s, used_s = time.monotonic(), cpu_s([worker])
        _ask(port, "GET", "/health")
        took_s, used_s = time.monotonic() - before_s, cpu_s([worker]) - used_s
        stall_s = max(stall_s, min(took_s, used_s))
        asked += 1
    print(json.dumps({"stall_s": stall_s, "asked": asked}))


def _ask(port: int, method: str, path: str, body: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"Authorization": f"Bearer {os.environ['KEY']}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


_PROGRAMS: Final[Mapping[str, Callable[[int, int], None]]] = {"send": send, "watch": watch}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
