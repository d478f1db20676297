"""Asks a proxy for its health, each time on a new connection, until standard input ends.

In a process of its own, so that it measures the proxy and not the clients beside it. Prints
`{"asked", "worst_s", "worst_served_s", "faults"}` at the end. Arguments: the proxy's port, and its
workers' process ids.
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

from tests.kit.processes import starved_each
from tests.soak.town import ask_health

_EVERY_S: Final = 0.2
_ANSWER_S: Final = 20.0


def _is_true(status: int, told: dict[str, Any]) -> bool:
    """Whether it is ready; or says why not: what befalls the calls may close both accounts."""
    if status == 503 and told.get("status") == "no_usable_account":
        return bool(told.get("cause"))
    return status == 200 and bool(told.get("ready", True))


def main(port: int, pids: Sequence[int]) -> None:
    asked, worst_s, worst_served_s, faults = 0, 0.0, 0.0, []
    concerned = [*pids, os.getpid()]
    while not select.select([sys.stdin], [], [], _EVERY_S)[0]:
        path = "/health" if asked % 2 else "/health/ready"
        began_s, before = time.monotonic(), starved_each(concerned)
        try:
            status, told = ask_health(port, path, _ANSWER_S)
            if not _is_true(status, told):
                faults.append(f"{path}: {status} {str(told)[:200]}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            faults.append(f"{path}: {error!r}")
        took_s = time.monotonic() - began_s
        # Which worker answered is not known: the one that waited longest may have.
        *workers, own_s = (b - a for a, b in zip(before, starved_each(concerned), strict=True))
        worst_s = max(worst_s, took_s)
        worst_served_s = max(worst_served_s, took_s - max(workers) - own_s)
        asked += 1
    told = {"asked": asked, "worst_s": worst_s, "worst_served_s": worst_served_s, "faults": faults}
    print(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(pid) for pid in sys.argv[2:]])
