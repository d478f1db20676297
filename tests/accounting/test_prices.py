"""What calls cost, and what caches save of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.accounting import prices
from qwen_wsgi.accounting.prices import Cost, Prices
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.protocol.usage import Usage
from tests.fakes.clock import NOON_S
from tests.kit.properties import examples

MILLION = 1_000_000
RULES = {
    "cache": {"implicit_hit": 0.2, "explicit_hit": 0.1, "explicit_write": 1.25},
    "half_price": {"factor": 0.5},
}


def table(*entries: dict[str, Any], **rules: Any) -> Prices:
    return Prices(prices.read(json.dumps({**RULES, **rules, "prices": entries})))


def entry(**members: Any) -> dict[str, Any]:
    return {"models": ["m"], "currency": "USD", "input": 2, "output": 6, **members}


def cost(
    known: Prices,
    usage: Usage | None,
    *,
    model: str = "m",
    flex: bool = False,
    at: float = NOON_S,
    units: Sequence[tuple[str, float]] = (),
) -> Cost | None:
    call = CallRecord(upstream_model=model, usage=usage, half_price=flex, units=tuple(units))
    return known.cost(call, at)


@pytest.mark.parametrize(
    ("usage", "flex", "expected"),
    [
        (Usage(MILLION, MILLION), False, (8.0, 0.0)),
        (Usage(1000, 0), False, (0.002, 0.0)),
        (Usage(1000, 10), True, (0.00103, 0.0)),
        # A cache that works by itself: a hit is 20 % of the input.
        (Usage(1000, 0, cached=500), False, (0.0012, 0.0008)),
        # A marked one: a hit is 10 %, writing is 125 %.
        (Usage(1000, 0, cached=500, explicit_cache=True), False, (0.0011, 0.0009)),
        (Usage(1000, 0, cache_written=1000), False, (0.0025, -0.0005)),
        (Usage(1000, 0, cached=400, cache_written=100), False, (0.00133, 0.00067)),
        # Half price has no discount of the cache on top.
        (Usage(1000, 0, cached=500), True, (0.001, 0.0)),
    ],
)
def test_what_tokens_cost(usage: Usage, flex: bool, expected: tuple[float, float]) -> None:
    found = cost(table(entry()), usage, flex=flex)

    assert found is not None
    assert (found.money_micro / MILLION, found.saved_micro / MILLION) == pytest.approx(expected)
    assert found.currency == "USD"


@pytest.mark.parametrize(
    ("members", "usage"),
    [
        ({}, None),
        ({}, Usage(total=5)),
        ({}, Usage(prompt=5)),
        ({}, Usage(completion=5)),
        ({"input": None}, Usage(5, 5)),
        ({"output": None}, Usage(5, 5)),
        ({"models": ["other"]}, Usage(5, 5)),
        ({"since": "2026-11-21"}, Usage(5, 5)),
        ({"tiers": [{"up_to": 4, "input": 1, "output": 1}]}, Usage(5, 5)),
    ],
)
def test_what_is_not_known_is_none_and_never_zero(
    members: dict[str, Any], usage: Usage | None
) -> None:
    assert cost(table(entry(**members)), usage) is None


def test_what_has_no_output_needs_no_price_for_it() -> None:
    known = table(entry(output=None))

    assert cost(known, Usage(1000, None)) == (2000, 0, "USD")
    assert cost(known, Usage(1000, 0)) == (2000, 0, "USD")


def test_the_whole_prompt_has_the_price_of_its_tier() -> None:
    known = table(
        entry(
            tiers=[
                {"up_to": None, "input": 9, "output": 20},
                {"up_to": 200, "input": 3, "output": 10},
                {"up_to": 100, "input": 1, "output": 5},
            ]
        )
    )

    assert [cost(known, Usage(count, 1)) for count in (100, 101, 200, 201)] == [
        (105, 0, "USD"),
        (313, 0, "USD"),
        (610, 0, "USD"),
        (1829, 0, "USD"),
    ]


def test_the_latest_price_that_has_begun_counts() -> None:
    known = table(
        entry(input=1),
        entry(input=3, since="2026-11-19"),
        entry(input=2, since="2026-11-01T00:00:00+08:00"),
        entry(input=4, since="2026-11-21"),
    )

    day = 86_400
    found = [cost(known, Usage(1, 0), at=NOON_S + day * days) for days in (-30, -5, 0, 2)]
    assert [each.money_micro for each in found if each] == [1, 2, 3, 4]


def test_units_have_prices_too() -> None:
    known = table(
        {"models": ["image-*"], "currency": "CNY", "units": {"pictures": 0.2, "seconds": None}}
    )
    pictures = [("pictures", 3.0)]

    assert cost(known, None, model="image-1", units=pictures) == (600_000, 0, "CNY")
    assert cost(known, Usage(total=5), model="image-1", units=pictures) == (600_000, 0, "CNY")
    assert cost(known, None, model="image-1", units=[("seconds", 3.0)]) is None
    assert cost(known, None, model="m", units=pictures) is None


def test_the_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    known = table(entry())
    for number in range(5000):
        assert cost(known, Usage(1, 1), model=f"m{number}") is None

    assert len(known._known) <= 1024
    assert cost(known, Usage(1, 1)) == (8, 0, "USD")


COUNTS = st.integers(0, 2_000_000)


@given(COUNTS, COUNTS, st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans())
@examples(100)
def test_money_and_what_was_saved_are_the_price_without_a_cache(
    prompt: int, completion: int, cached: float, written: float, marked: bool, flex: bool
) -> None:
    read = int(prompt * cached)
    stored = int((prompt - read) * written)
    usage = Usage(
        prompt, completion, cached=read, cache_written=stored or None, explicit_cache=marked
    )

    found = cost(table(entry()), usage, flex=flex)

    assert found is not None
    full = (prompt * 2 + completion * 6) / (2 if flex else 1)
    assert abs(found.money_micro + found.saved_micro - full) <= 1
    assert found.money_micro >= 0


# --- tables --------------------------------------------------------------------------------------


def test_the_built_in_table_says_where_each_price_is_from() -> None:
    known = json.loads(prices.FILE.read_text())

    assert known["as_of"]
    assert all(each["source"] for each in known["prices"])
    assert known["cache"]["source"] and known["half_price"]["source"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("qwen3.8-max", (8 * MILLION, 0, "USD")),
        ("qwen3.8-max-0902", (8 * MILLION, 0, "USD")),
        ("qwen3.8-flash", (620_000, 0, "USD")),
        ("qwen3.7-max-2026-06-08", (10 * MILLION, 0, "USD")),
        ("qwen3.7-plus", None),
        ("qwen3.8-max-preview", None),
        ("text-embedding-v4", None),
    ],
)
def test_what_the_built_in_table_knows(model: str, expected: Any) -> None:
    assert cost(prices.load(), Usage(MILLION, MILLION), model=model) == expected
    if model == "text-embedding-v4":
        assert cost(prices.load(), Usage(MILLION), model=model) == (500_000, 0, "CNY")


def test_the_operator_s_own_table_wins(tmp_path: Path) -> None:
    own = tmp_path / "prices.json"
    own.write_text(json.dumps({"prices": [entry(models=["qwen3.8-max", "llama*"], input=1)]}))
    known = prices.load(own)

    used = Usage(MILLION, 0, cached=MILLION)
    # Its own rules for caches: it has none.
    assert cost(known, used, model="qwen3.8-max") == (MILLION, 0, "USD")
    assert cost(known, used, model="llama-4") == (MILLION, 0, "USD")
    assert cost(known, used, model="qwen3.8-flash") == (30_000, 120_000, "USD")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "the table must be an object"),
        ('{"prices": {}}', "the table.prices must be a list"),
        ('{"prices": [1]}', "prices[0] must be an object"),
        ('{"prices": [{"models": []}]}', "prices[0].models must be a list of names"),
        ('{"prices": [{"models": ["m"]}]}', "prices[0].currency must be three capital letters"),
        ('{"cache": {"implicit_hit": -1}}', "cache.implicit_hit must be a number from 0 on"),
        ('{"half_price": 0.5}', "the table.half_price must be an object"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_place(
    tmp_path: Path, text: str, why: str
) -> None:
    own = tmp_path / "prices.json"
    own.write_text(text)

    with pytest.raises(ValueError) as caught:
        prices.load(own)

    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"input": "2"}, "prices[0].input must be a number from 0 on, or null"),
        ({"input": True}, "prices[0].input must be a number"),
        ({"output": 1e13}, "prices[0].output must be a number"),
        ({"since": "soon"}, "prices[0].since must be a date"),
        ({"since": 5}, "prices[0].since must be a text"),
        ({"tiers": [5]}, "prices[0].tiers[0] must be an object"),
        ({"tiers": [{"up_to": "x"}]}, "prices[0].tiers[0].up_to must be a number"),
        ({"units": {"pictures": "x"}}, "prices[0].units.pictures must be a number"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_with_the_place(
    members: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError) as caught:
        table(entry(**members))

    assert why in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        prices.load(tmp_path / "none")
    (tmp_path / "large").write_bytes(b" " * 1_100_000)
    with pytest.raises(ValueError, match="more than a megabyte"):
        prices.load(tmp_path / "large")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ValueError):
        prices.load(tmp_path / "binary")
