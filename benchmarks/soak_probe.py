"""Counts greenlets in a worker when it gets a signal: nothing outside a process can see them.

The server that is soaked is the product's own. What loads this into it is a `sitecustomize` on its
PYTHONPATH, which gunicorn and its workers inherit; it does nothing until the signal comes. Then it
also gives memory that is free back to the system: what the process still has it uses.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import json
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Final

SIGNAL: Final = signal.SIGRTMIN + 3

#: How a PYTHONPATH directory loads this.
SITECUSTOMIZE: Final = """from benchmarks import soak_probe
soak_probe.install({directory!r})
"""


def install(directory: str) -> None:
    """Answer the signal from now on, also in processes that are forked from this one."""

    def answer(signum: int, frame: FrameType | None) -> None:
        path = Path(directory, f"counts-{os.getpid()}")
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(counts()))
        aside.rename(path)

    signal.signal(SIGNAL, answer)


def counts() -> dict[str, Any]:
    """`{"greenlets": <alive>, "objects": {<type>: <count>}}` of this process, without garbage.

    What was there when the worker began is frozen, and not among the objects.
    """
    from greenlet import greenlet  # late: gunicorn.conf.py patches before anything is imported

    gc.collect()
    found = gc.get_objects()
    alive = sum(1 for each in found if isinstance(each, greenlet) and not each.dead)
    types = collections.Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in found)
    del found
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    return {"greenlets": alive, "objects": dict(types.most_common(400))}
