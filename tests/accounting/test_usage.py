"""Questions about what was used, and the shape of the answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from qwen_wsgi.accounting import usage
from qwen_wsgi.accounting.usage import BY, COLUMNS, Receipt, Span, midnight, moment, span
from qwen_wsgi.state.database.calls import Totals
from tests.fakes.clock import NOON_S

BERLIN = ZoneInfo("Europe/Berlin")
DAY = 86_400.0


def at(text: str, zone: Any = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOON_S),
        ("7d", NOON_S - 7 * DAY),
        ("12h", NOON_S - DAY / 2),
        ("30 min", NOON_S - 1800),
        ("90s", NOON_S - 90),
        ("2w", NOON_S - 14 * DAY),
        ("today", at("2026-11-20")),
        (" Month ", at("2026-11-01")),
        ("2026-11-01", at("2026-11-01")),
        ("2026-11-01T12:30", at("2026-11-01T12:30")),
        ("2026-11-01T12:30+08:00", at("2026-11-01T04:30")),
        ("1795176000", NOON_S),
    ],
)
def test_times_that_are_understood(text: str, expected: float) -> None:
    assert moment(text, now=NOON_S, zone=UTC) == expected


@pytest.mark.parametrize("text", ["", "soon", "-7d", "7y", "2026-13-01", "20 d ago", "12345"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as 7d"):
        moment(text, now=NOON_S, zone=UTC)


def test_a_day_as_the_end_is_in_the_span() -> None:
    found = span("2026-10-25", "2026-10-25", now=NOON_S, zone=BERLIN)

    # The clocks went back that night.
    assert found == Span(at("2026-10-25", BERLIN), at("2026-10-26", BERLIN))
    assert found.until - found.since == 25 * 3600
    assert span("7d", "now", now=NOON_S).until > NOON_S
    assert span("7d", "2026-11-20T10:00", now=NOON_S, zone=UTC).until == NOON_S - 7200


@pytest.mark.parametrize(
    ("since", "until", "why"),
    [
        ("soon", "now", "^since must be a time"),
        ("7d", "soon", "^until must be a time"),
        ("1d", "2d", "^since must be before until"),
    ],
)
def test_spans_that_are_none(since: str, until: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        span(since, until, now=NOON_S, zone=UTC)


def test_days_begin_where_the_machine_is() -> None:
    # 12:00 UTC is 01:00 of the next day there.
    far = timezone(timedelta(hours=13))

    assert midnight(NOON_S, far) == NOON_S - 3600
    assert midnight(NOON_S, far, day=1) == at("2026-11-01", far)
    assert NOON_S - DAY < midnight(NOON_S) <= NOON_S


# --- reports -------------------------------------------------------------------------------------


def totals(key: str | int, priced: str | None, calls: int = 1, **other: int) -> Totals:
    return Totals(key, priced, calls, **{**dict.fromkeys(Totals._fields[3:], 0), **other})


def report(*found: Totals, by: Any = "client", zone: Any = UTC) -> list[dict[str, Any]]:
    made = usage.report(found, by, Span(1.5, 2.5), zone)
    assert (made["since"], made["until"], made["by"]) == (1, 2, by)
    assert all(tuple(row) == COLUMNS for row in made["rows"])
    rows: list[dict[str, Any]] = made["rows"]
    return rows


def test_a_row_has_the_fixed_shape() -> None:
    (row,) = report(
        totals(
            "a",
            "USD",
            calls=9,
            refused=2,
            failed=1,
            input_tokens=100,
            cached_tokens=40,
            output_tokens=10,
            reasoning_tokens=4,
            unknown_usage=1,
            cache_hits=3,
            money_micro=1_234_567,
            saved_micro=-5,
        )
    )

    assert row == {
        "key": "a",
        "calls": 7,
        "refused": 2,
        "failed": 1,
        "input_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 10,
        "reasoning_tokens": 4,
        "unknown_usage": 1,
        "cache_hits": 3,
        "money": 1.234567,
        "saved_by_cache": -5e-06,
        "currency": "USD",
    }


def test_two_currencies_and_what_has_no_price_have_a_row_each() -> None:
    rows = report(
        totals("a", "USD", calls=3, money_micro=2_000_000),
        totals("a", "CNY", calls=2, money_micro=1),
        totals("a", "", calls=1, input_tokens=5),
    )

    assert [(row["calls"], row["money"], row["currency"]) for row in rows] == [
        (3, 2.0, "USD"),
        (2, 1e-06, "CNY"),
        (1, None, None),
    ]


def test_what_has_used_nothing_has_no_row_of_its_own() -> None:
    rows = report(
        totals("a", "USD", calls=3, money_micro=7),
        totals("a", "CNY", calls=5),
        totals("a", None, calls=4, refused=4),
        totals("b", None, calls=2, refused=1, failed=1),
        totals("c", "", calls=2),
        totals("c", None, calls=1),
    )

    assert [(r["key"], r["calls"], r["refused"], r["money"], r["currency"]) for r in rows] == [
        ("a", 5, 4, 0.0, "CNY"),
        ("a", 3, 0, 7e-06, "USD"),
        ("c", 3, 0, None, None),
        ("b", 1, 1, None, None),
    ]


def test_two_clients_of_one_name_are_one_row() -> None:
    assert [row["calls"] for row in report(totals("a", "USD"), totals("a", "USD", calls=2))] == [3]


@pytest.mark.parametrize(
    ("by", "zone", "keys"),
    [
        ("day", UTC, ["2026-10-24", "2026-10-25"]),
        ("day", BERLIN, ["2026-10-25"]),
        (
            "hour",
            BERLIN,
            # There are two hours from 02:00 on that day.
            [
                "2026-10-25T00:00+02:00",
                "2026-10-25T02:00+01:00",
                "2026-10-25T02:00+02:00",
                "2026-10-25T12:00+01:00",
            ],
        ),
        (
            "hour",
            timezone(timedelta(hours=5, minutes=45)),
            [
                "2026-10-25T03:00+05:45",
                "2026-10-25T04:00+05:45",
                "2026-10-25T05:00+05:45",
                "2026-10-25T06:00+05:45",
                "2026-10-25T16:00+05:45",
            ],
        ),
    ],
)
def test_days_and_hours_are_those_of_the_zone(by: str, zone: Any, keys: list[str]) -> None:
    times = ["2026-10-24T22:05", "2026-10-24T22:20", "2026-10-25T00:10", "2026-10-25T01:10"]
    quarters = [int(at(text) // 900) for text in (*times, "2026-10-25T11:00")]
    rows = report(*(totals(quarter, "USD") for quarter in quarters), by=by, zone=zone)

    assert sum(row["calls"] for row in rows) == 5
    assert [row["key"] for row in rows] == keys


def test_what_can_be_asked() -> None:
    assert BY == ("client", "model", "account", "endpoint", "day", "hour")


def test_the_cache_receipt() -> None:
    rows = report(
        totals("a", "USD", input_tokens=75, cached_tokens=25, money_micro=10, saved_micro=5),
        totals("b", "CNY", input_tokens=25, money_micro=10),
        totals("c", "USD", money_micro=10, saved_micro=5),
        totals("d", "", input_tokens=100),
    )

    found = usage.receipt(rows)

    assert (found.input_tokens, found.cached_tokens, found.share) == (200, 25, 0.125)
    assert found.money["USD"] == pytest.approx((20e-06, 10e-06))
    assert list(found.money) == ["CNY", "USD"]
    assert usage.receipt([]) == Receipt(0, 0, {})
    assert usage.receipt([]).share == 0.0
