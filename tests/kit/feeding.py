"""Cuts a byte stream into pieces, as the network may do anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from hypothesis import strategies as st


def ways_to_cut(data: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Name and pieces of each way; the pieces of every way join to `data`."""
    yield "whole", [data]
    yield "per byte", [data[i : i + 1] for i in range(len(data))]
    yield "per line", data.splitlines(keepends=True)
    yield "two bytes at a time", [data[i : i + 2] for i in range(0, len(data), 2)]
    yield "inside UTF-8", at(data, (i for i, byte in enumerate(data) if 0x80 <= byte < 0xC0))
    yield "inside CRLF", at(data, (i + 1 for i, byte in enumerate(data) if byte == 0x0D))
    yield "inside blank lines", at(data, (i + 1 for i, byte in enumerate(data) if byte == 0x0A))
    for seed in range(5):
        chance = random.Random(seed)
        places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 40)))
        yield f"at random places {seed}", at(data, places)


def at(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data cut at ascending places; empty pieces are left out."""
    pieces = []
    start = 0
    for place in (*places, len(data)):
        if place > start:
            pieces.append(data[start:place])
            start = place
    return pieces


def random_cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Any cut of the data, the whole and single bytes included."""
    places = st.lists(st.integers(0, len(data)), max_size=30).map(sorted)
    return places.map(lambda chosen: at(data, chosen))
