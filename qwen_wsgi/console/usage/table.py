"""A table of exact numbers, for a page and for a spreadsheet. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final, NamedTuple

from qwen_wsgi.console.usage.charts import readable

#: What a value is that nobody knows; never 0.
UNKNOWN: Final = "unknown"

Value = str | int | float | None

#: What makes a spreadsheet take a text for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class Table(NamedTuple):
    """Rows under headings. The first cell of a row is its name.

    Attributes:
        rows: a value that is None is unknown.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Value]]


def shown(value: Value) -> str:
    """A cell for people."""
    if value is None:
        return UNKNOWN
    if isinstance(value, str):
        return readable(value) or "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:,.4g}"


def csv_of(table: Table) -> str:
    """The table as CSV (RFC 4180). Exact numbers, and no text that a spreadsheet would run."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([harmless(heading) for heading in table.headings])
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    return out.getvalue()


def _cell(value: Value) -> str:
    if value is None:
        return UNKNOWN
    return harmless(value) if isinstance(value, str) else repr(value)


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula: clients choose the names of models."""
    # NUL ends the cell in some programs.
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    is_formula = len(text) > 1 and text.lstrip(" ").startswith(_FORMULA)
    return f"'{text}" if is_formula else text
