"""Runs slow checks at the same time, within one time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def run_parallel(
    works: Sequence[Callable[[], T]],
    *,
    timeout_s: float,
    failed: Callable[[int, Exception | None], T],
) -> list[T]:
    """Call all functions in threads of their own and return their results, in order.

    A late one continues in its daemon thread, which does not keep the process alive.

    Args:
        failed: makes the result for a function that raised an exception, or (None) was too late;
            the first argument is its index in `works`.
    """
    results: dict[int, T] = {}
    done = threading.Event()

    def work(place: int) -> None:
        try:
            result = works[place]()
        except Exception as error:  # reported as a finding
            result = failed(place, error)
        results[place] = result
        if len(results) == len(works):
            done.set()

    for place in range(len(works)):
        threading.Thread(target=work, args=(place,), name="doctor", daemon=True).start()
    if works:
        done.wait(timeout_s)
    finished = dict(results)  # a copy: a late result must not appear between two reads
    places = range(len(works))
    return [finished[place] if place in finished else failed(place, None) for place in places]
