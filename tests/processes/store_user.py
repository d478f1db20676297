"""Processes that store responses; run by test_responses_store.

python -m tests.processes.store_user put DIRECTORY NAME
python -m tests.processes.store_user full DIRECTORY MOST_BYTES
python -m tests.processes.store_user fork DIRECTORY
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.tables import database_in


def store_at(directory: Path) -> ResponseStore:
    database = database_in(directory, SystemClock())
    return ResponseStore(database, SystemClock(), ttl_s=3600, max_bytes=2**26)


def response(id: str, size: int) -> dict[str, Any]:
    return {"id": id, "output": [{"content": "x" * size}]}


def put(directory: Path, name: str) -> None:
    """Store one conversation without end; print the id of each response once it is stored."""
    store, previous = store_at(directory), None
    for number in itertools.count():
        id = f"{name}-{number}"
        stored = store.put("a", response(id, number * 977 % 30_000), [{"id": id}], previous)
        assert stored or number
        if stored:
            print(id, flush=True)
            previous = id


def full(directory: Path, most_bytes: int) -> None:
    """Store until the system takes no more; print how many were taken."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    store = store_at(directory)
    taken = 0
    while store.put("a", response(f"r{taken}", 20_000), [], None):
        taken += 1
    store._database.close()
    print(taken, flush=True)


def fork(directory: Path) -> None:
    """Use a store before and after a fork, in both processes."""
    store = store_at(directory)
    assert store.put("a", response("before", 10), [], None)
    child = os.fork()
    who = "parent" if child else "child"
    for number in range(50):
        assert store.put("a", response(f"{who}-{number}", 10), [], "before")
    if child:
        assert os.waitpid(child, 0)[1] == 0
        assert len(store.history("a", "child-49")) == 2
        assert len(store.history("a", "parent-49")) == 2


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "put":
        put(Path(where), rest[0])
    elif what == "full":
        full(Path(where), int(rest[0]))
    else:
        fork(Path(where))
