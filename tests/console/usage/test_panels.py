"""Charts and tables have the numbers of the ledger, and unknown stays unknown."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.usage import Span
from qwen_wsgi.console.usage import panels as usage_panels
from qwen_wsgi.console.usage.panels import Groups, Panel
from qwen_wsgi.state.database.calls import ErrorCount, FirstBytes

PLAIN: dict[str, Any] = {
    "key": "a", "calls": 10, "refused": 1, "failed": 2, "input_tokens": 100, "cached_tokens": 40,
    "output_tokens": 7, "reasoning_tokens": 3, "unknown_usage": 0, "cache_hits": 0, "money": 0.5,
    "saved_by_cache": 0.25, "currency": "USD",
}  # fmt: skip


def row(**other: Any) -> dict[str, Any]:
    return {**PLAIN, **other}


def panels(rows: list[dict[str, Any]], *keys: str, by: str = "client") -> dict[str, Panel]:
    found = usage_panels.panels(Groups(by, keys), rows, [], [])
    return {each.kind: each for each in found}


def test_a_name_with_two_currencies_is_one_row_but_for_money() -> None:
    unpriced = row(calls=4, failed=0, money=None, saved_by_cache=None, currency=None)
    found = panels([row(), row(currency="CNY", money=3.0), unpriced], "a")
    assert list(found) == ["calls", "tokens", "money-cny", "money-usd", "errors", "first-byte"]
    assert found["calls"].table.rows == [("a", 24, 4, 3, 0)]
    assert found["tokens"].table.rows == [("a", 300, 120, 21, 9, 0)]
    assert found["money-cny"].table.rows == [("a", 3.0, 0.25, 4)]
    assert "price of 4 calls is unknown" in found["money-usd"].note


def test_unknown_money_is_never_zero() -> None:
    unpriced = row(key="b", money=None, saved_by_cache=None, currency=None)
    nothing = row(key="c", calls=2, failed=2, money=None, saved_by_cache=None, currency=None)
    found = panels([row(), unpriced, nothing], "a", "b", "c")
    assert found["money-usd"].table.rows == [
        ("a", 0.5, 0.25, 0),
        ("b", None, None, 8),
        ("c", 0, 0, 0),
    ]
    only = panels([unpriced], "b")
    assert only["money"].table.rows == [("b", None, 8)]
    assert "USD" not in only["money"].title


def test_days_without_calls_are_there() -> None:
    asked = Span(1_795_910_400.0, 1_795_910_400.0 + 3 * 86_400)
    keys = usage.keys("day", asked, UTC)
    assert keys == ["2026-11-29", "2026-11-30", "2026-12-01"]
    found = panels([row(key="2026-11-30")], *keys, by="day")
    assert [each[1] for each in found["calls"].table.rows] == [0, 10, 0]
    assert "Nov 29" in found["calls"].chart
    hours = usage.keys("hour", Span(asked.since, asked.since + 7200), UTC)
    assert hours == ["2026-11-29T00:00+00:00", "2026-11-29T01:00+00:00"]
    assert usage_panels.label_of(hours[1]) == "01:00"


def test_errors_by_cause_have_all_counts() -> None:
    errors = [ErrorCount("a", "upstream_error", f"e{n}", n) for n in range(1, 15)]
    errors.append(ErrorCount("b", "cut_by_stop", "", 50))
    panel = usage_panels.find(
        usage_panels.panels(Groups("model", ["a", "b"]), [], errors, []), "errors"
    )
    assert panel is not None
    assert panel.table.headings[:3] == ("model", "cut_by_stop", "e14")
    assert panel.table.headings[-1] == "others"
    assert [sum(each[1:]) for each in panel.table.rows] == [105, 50]  # type: ignore[arg-type]  # of counts
    assert panel.legend == ["cut_by_stop", "e14", "e13", "e12", "others"]


def test_times_to_the_first_byte() -> None:
    first = [FirstBytes("a", 4, 5000.0, 3000.0, (1, 2, 0, 1, 0, 0))]
    panel = usage_panels.find(
        usage_panels.panels(Groups("model", ["a", "b"]), [], [], first), "first-byte"
    )
    assert panel is not None
    assert panel.table.rows == [("a", 4, 1.25, 3.0, 1, 2, 0, 1, 0, 0), ("b", 0, "–", "–", *[0] * 6)]
    assert panel.legend[-2:] == ["within 15 s", "over 15 s"]


def test_many_names_are_a_few_bars_and_all_rows() -> None:
    keys = [f"client-{n}" for n in range(30)]
    found = panels([row(key=key, calls=n + 3) for n, key in enumerate(keys)], *keys)
    assert len(found["calls"].table.rows) == 30
    assert "client-29" in found["calls"].chart
    assert "client-3<" not in found["calls"].chart
    assert "others" in found["calls"].chart
