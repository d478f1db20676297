"""Things that wait for others, done at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def run_parallel(
    works: Sequence[Callable[[], T]],
    *,
    timeout_s: float,
    otherwise: Callable[[int, Exception | None], T],
) -> list[T]:
    """What each of them returns, in their order.

    One that is late goes on in its thread, which does not keep the process.

    Args:
        otherwise: the result in place of one that raised this, or (None) was not there in time;
            is given the place among `works`.
    """
    results: dict[int, T] = {}
    done = threading.Event()

    def work(place: int) -> None:
        try:
            result = works[place]()
        except Exception as error:  # the thread's top
            result = otherwise(place, error)
        results[place] = result
        if len(results) == len(works):
            done.set()

    for place in range(len(works)):
        threading.Thread(target=work, args=(place,), name="doctor", daemon=True).start()
    if works:
        done.wait(timeout_s)
    told = dict(results)  # a late one must not come in between
    places = range(len(works))
    return [told[place] if place in told else otherwise(place, None) for place in places]
