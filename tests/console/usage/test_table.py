"""Tables: exact in a spreadsheet, and never a formula."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.console.usage.table import Table, csv_of, harmless, shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1"])
def test_what_a_spreadsheet_would_run_is_made_harmless(text: str) -> None:
    assert harmless(text) == "'" + text


@pytest.mark.parametrize("text", ["qwen3.8-max", "a=b", "-", "", "'x", "1-2"])
def test_other_texts_stay(text: str) -> None:
    assert harmless(text) == text


@given(st.lists(st.tuples(st.text(), st.integers(), st.none() | st.floats(allow_nan=False))))
def test_csv_says_what_the_table_says(rows: list[tuple[str, int, float | None]]) -> None:
    made = csv_of(Table(("=name", "count", "money"), rows))
    read = list(csv.reader(io.StringIO(made, newline="")))
    assert read[0] == ["'=name", "count", "money"]
    for (name, count, money), cells in zip(rows, read[1:], strict=True):
        assert cells[0] == harmless(name)
        assert int(cells[1]) == count
        assert cells[2] == "unknown" if money is None else float(cells[2]) == money


def test_cells_for_people() -> None:
    assert [shown(value) for value in (None, "", "a", 0, 1234567, 0.0, 0.01234, 12345.678)] == (
        ["unknown", "–", "a", "0", "1,234,567", "0", "0.01234", "12,345.68"]
    )
