"""Counts greenlets and memory in a worker when it gets a signal: nothing outside can see them.

The server that is soaked is the product's own. What loads this into it is a `sitecustomize` on its
PYTHONPATH, which gunicorn and its workers inherit; it does nothing until the signal comes. Then it
also gives memory that is free back to the system, as far as whole pages of it are free.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

SIGNAL: Final = signal.SIGRTMIN + 3

#: The package whose objects must not wait for the garbage collector.
_PACKAGE: Final = "qwen_wsgi."

#: How a PYTHONPATH directory loads this.
SITECUSTOMIZE: Final = """from tests.soak import probe
probe.install({directory!r})
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
    """What is in this process, without garbage.

    `{"greenlets": {<what it runs>: <count>}, "objects": {<type>: <count>},
    "cycles": {<type>: <count>}, "used_kb": <memory>}`. What was there when the worker began is
    frozen, and not among the objects. `cycles` are those of ours that nobody could reach any more,
    but that held each other; the collector may have freed others before.
    """
    from greenlet import greenlet  # late: gunicorn.conf.py patches before anything is imported

    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    cycles = {name: n for name, n in _types(gc.garbage).items() if name.startswith(_PACKAGE)}
    gc.garbage.clear()
    gc.collect()
    found = gc.get_objects()
    alive = [each for each in found if isinstance(each, greenlet) and not each.dead]
    greenlets = collections.Counter(_running(each.gr_frame) for each in alive)
    types = _types(found)
    del found, alive
    used_kb = _used_by_python_kb() + _used_of_c_kb()
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    objects = dict(types.most_common(400))
    return {"greenlets": greenlets, "objects": objects, "cycles": cycles, "used_kb": used_kb}


def _running(frame: FrameType | None) -> str:
    """What a greenlet runs, from the outside in: our own functions, if there are any."""
    names = []
    while frame is not None:
        names.append(f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    names.reverse()
    ours = [name.removeprefix(_PACKAGE) for name in names if name.startswith(_PACKAGE)]
    return " > ".join(ours or names) or "itself, or not begun"


def _types(found: list[Any]) -> collections.Counter[str]:
    return collections.Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in found)


def _used_by_python_kb() -> float:
    """What Python's allocator has given out. It says so on C's standard error only."""
    aside = os.dup(2)
    with open(os.memfd_create("allocator"), "w+b") as told:
        try:
            os.dup2(told.fileno(), 2)
            sys._debugmallocstats()
        finally:
            os.dup2(aside, 2)
            os.close(aside)
        told.seek(0)
        line = re.search(rb"# bytes in allocated blocks\s*=\s*([\d,]+)", told.read())
    return int(line[1].replace(b",", b"")) / 1024 if line else 0.0


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [  # noqa: RUF012  # as ctypes wants it
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


def _used_of_c_kb() -> float:
    """What the C library's allocator has given out: larger objects, libev's, the sockets'."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # another C library, or glibc before 2.33
        return 0.0
    ask.restype = _MallInfo
    found = ask()
    return float(found.uordblks + found.hblkhd) / 1024
