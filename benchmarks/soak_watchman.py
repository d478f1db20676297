"""Asks a proxy for its health, each time on a new connection, until standard input ends.

In a process of its own, so that it measures the proxy and not the clients beside it. Prints
`{"asked", "worst_s", "faults"}` at the end.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from typing import Final

from benchmarks.soak_town import ask_health

_EVERY_S: Final = 0.2
_ANSWER_S: Final = 20.0


def main(port: int) -> None:
    asked, worst_s, faults = 0, 0.0, []
    while not select.select([sys.stdin], [], [], _EVERY_S)[0]:
        path = "/health" if asked % 2 else "/health/ready"
        began_s = time.monotonic()
        try:
            status, told = ask_health(port, path, _ANSWER_S)
            if status != 200 or not told.get("ready", True):
                faults.append(f"{path}: {status} {str(told)[:200]}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            faults.append(f"{path}: {error!r}")
        took_s = time.monotonic() - began_s
        worst_s = max(worst_s, took_s)
        asked += 1
    print(json.dumps({"asked": asked, "worst_s": worst_s, "faults": faults}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
