"""Things done at the same time."""

from __future__ import annotations

import threading
import time

from qwen_wsgi.doctor.parallel import run_parallel


def test_they_run_at_the_same_time_and_are_told_in_order() -> None:
    barrier = threading.Barrier(3, timeout=5)

    def meet(name: str) -> str:
        barrier.wait()
        return name

    found = run_parallel(
        [lambda name=name: meet(name) for name in "abc"],  # type: ignore[misc]  # bound now
        timeout_s=5,
        failed=lambda place, error: f"{place}: {error}",
    )

    assert found == ["a", "b", "c"]


def test_what_is_late_or_raises_gets_a_result_in_its_place() -> None:
    stop = threading.Event()

    def broken() -> str:
        raise ValueError("oops")

    def late() -> str:
        stop.wait(5)
        return "late"

    begun_s = time.monotonic()
    found = run_parallel(
        [late, broken, lambda: "good"],
        timeout_s=0.2,
        failed=lambda place, error: f"{place}: {error}",
    )
    stop.set()

    assert found == ["0: None", "1: oops", "good"]
    assert time.monotonic() - begun_s < 4


def test_nothing_to_do() -> None:
    assert run_parallel([], timeout_s=1, failed=lambda place, error: place) == []
