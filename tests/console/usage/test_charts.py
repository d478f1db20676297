"""Charts are well-formed for any names and numbers, and as high as what they show."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.console.usage import charts
from qwen_wsgi.console.usage.charts import Column
from tests.kit.properties import examples

NUMBERS = st.one_of(st.integers(0, 10**15), st.floats(0, 1e12, allow_nan=False))
COLUMNS = st.lists(
    st.builds(Column, st.text(max_size=60), st.tuples(NUMBERS, NUMBERS, NUMBERS)), max_size=60
)


def heights(svg: str, series: int) -> list[float]:
    found = re.search(rf'class="s{series}" d="([^"]*)"', svg)
    return [float(v) for v in re.findall(r"v([\d.]+)", found[1])] if found else []


@examples(100)
@given(COLUMNS, st.text(max_size=40))
def test_any_chart_is_an_image_with_a_text(columns: list[Column], title: str) -> None:
    values = [str(each.total) for each in columns]
    for svg in (
        charts.vertical(columns, title=title, unit="s"),
        charts.horizontal(columns, values, title=title),
    ):
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert (root.get("aria-label") or "").startswith(charts.readable(title))
        assert {each.tag for each in root.iter()} <= {"svg", "path", "text"}
        assert "style=" not in re.sub(r'"[^"]*"|>[^<]*<', "", svg)


@examples(50)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_bars_are_as_high_as_their_numbers(numbers: list[int]) -> None:
    columns = [Column(str(n), (n,)) for n in numbers]
    top = charts.nice_top(max(numbers))
    drawn = heights(charts.vertical(columns, title="x"), 0)
    assert drawn == [float(f"{170 * n / top:.1f}") for n in numbers if n]


def test_the_axis_ends_at_a_number_that_people_like() -> None:
    assert [charts.nice_top(n) for n in (0, 1, 3, 17, 50, 51, 0.03)] == [1, 1, 4, 20, 80, 80, 0.04]
    assert charts.nice_top(math.nan) == charts.nice_top(math.inf) == 1.0


@examples(100)
@given(st.floats(1e-12, 1e15))
def test_no_bar_is_higher_than_the_axis(largest: float) -> None:
    top = charts.nice_top(largest)
    assert largest <= top <= 10 * largest


def test_a_hostile_name_stays_a_text() -> None:
    name = '"><script>alert(1)</script>\u202e\x00'
    svg = charts.horizontal([Column(name, (1,))], ["1"], title=name)
    assert "<script" not in svg
    assert "\u202e" not in svg
    (label, _) = [each.text for each in ElementTree.fromstring(svg).iter() if each.text]
    assert label == '"><script>alert(1)</script>\ufffd\ufffd'


def test_numbers_of_an_axis_are_short() -> None:
    assert [charts.short_number(n) for n in (0, 0.05, 12, 1500, 2_000_000, 3e9, 4e12)] == (
        ["0", "0.05", "12", "1.5k", "2M", "3G", "4T"]
    )


def test_the_middle_of_a_long_name_is_left_out() -> None:
    short = charts.shortened("qwen3.8-max-" + "x" * 60 + "-2026-11-01")
    assert (len(short), short[:8], short[-11:]) == (40, "qwen3.8-", "-2026-11-01")


def test_what_a_chart_says_to_those_who_do_not_see_it() -> None:
    columns = [Column("Nov 1", (1, 2)), Column("Nov 2", (3, 4))]
    assert charts.sentence(columns, "USD") == (
        "2 bars from Nov 1 to Nov 2; altogether 10 USD, most at Nov 2 with 7 USD."
    )
    assert charts.sentence([], "") == charts.NOTHING
