"""What must hold for any bytes holds for Hypothesis's, and for all that a search once found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attack.fuzz.targets import TARGETS, seeds
from tests.kit.properties import examples

pytestmark = pytest.mark.once

FOUND = sorted((Path(__file__).parents[2] / "corpus/fuzz").glob("*/*"))

each_target = pytest.mark.parametrize("name", TARGETS)


@st.composite
def varied(draw: st.DrawFn, good: list[bytes]) -> bytes:
    """Good bytes with a few changes, which come further than any bytes do."""
    data = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 6)))
        other = draw(st.binary(max_size=6) | st.just(data[start : start + 20]))
        data = data[:start] + other + data[end:]
    return data


@each_target
@examples(200)
@given(st.data())
def test_it_holds_for_any_bytes(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(st.binary(max_size=200) | varied(seeds(name))))


@each_target
def test_it_holds_at_every_truncation_and_every_cut(name: str) -> None:
    for seed in seeds(name):
        for end in range(len(seed) + 1):
            TARGETS[name](seed[:end])
        for step in range(16):
            if name not in ("json_body",):
                place = 1 if name in ("body", "chunks") else 0
                TARGETS[name](seed[:place] + bytes([step]) + seed[place + 1 :])


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name[:16]}")
def test_it_holds_for_what_was_found(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())
