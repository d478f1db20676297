"""What upstreams counted, as all workers see it."""

from __future__ import annotations

from pathlib import Path

from qwen_wsgi.state.shared_files import SharedFiles, key_of
from qwen_wsgi.state.token_counts import Counted, TokenCounts

ONE, TWO, THREE = (key_of(name) for name in ("one", "two", "three"))


def test_the_longest_beginning_counts_in_every_worker(tmp_path: Path) -> None:
    here, there = TokenCounts(SharedFiles(tmp_path)), TokenCounts(SharedFiles(tmp_path))
    here.remember(ONE, 10)
    here.remember(TWO, 5_000_000_000)

    assert there.longest([ONE, TWO, THREE]) == Counted(2, 5_000_000_000)
    assert there.longest([ONE, THREE]) == Counted(1, 10)
    assert there.longest([THREE]) is None
    assert there.longest([]) is None


def test_a_client_that_stopped_counting_costs_nothing_after_a_day() -> None:
    now = [100.0]
    counts = TokenCounts(None, boottime=lambda: now[0])
    counts.want("ada")

    assert counts.wanted("ada")
    assert not counts.wanted("bob")
    now[0] += 86_401
    assert not counts.wanted("ada")


def test_it_holds_as_much_as_fits(tmp_path: Path) -> None:
    counts = TokenCounts(SharedFiles(tmp_path))
    for number in range(20_000):
        counts.remember(key_of(str(number)), number)

    assert counts.longest([key_of("19999")]) == Counted(1, 19_999)
    (file,) = tmp_path.glob("tokens-*")
    assert file.stat().st_size < 200_000
