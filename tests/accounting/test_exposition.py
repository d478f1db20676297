"""The text of metrics: in both formats, and with any values of labels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_wsgi.accounting import exposition
from qwen_wsgi.accounting.metric_families import FAMILIES, Family
from qwen_wsgi.accounting.metrics import Rows, zero_row
from tests.kit.prometheus_text import parse

COUNTER = Family("qwen_proxy_a_total", "counter", "Counts.", ("x", "y"))
GAUGE = Family("qwen_proxy_b", "gauge", "Tells.")
HISTOGRAM = Family("qwen_proxy_c_seconds", "histogram", "Times.", ("x",), (0.5, 1.0))
ALL = (COUNTER, GAUGE, HISTOGRAM)
ROWS: Rows = {
    (COUNTER.name, "1", "2"): [3.0],
    (COUNTER.name, "0", "2"): [4.5],
    (GAUGE.name,): [1.0],
    (HISTOGRAM.name, "1"): [2.0, 0.0, 1.0, 7.25],
    ("qwen_proxy_unknown_total",): [1.0],
}


def test_prometheus_text() -> None:
    assert exposition.render(ROWS, families=ALL) == (
        "# HELP qwen_proxy_a_total Counts.\n"
        "# TYPE qwen_proxy_a_total counter\n"
        'qwen_proxy_a_total{x="0",y="2"} 4.5\n'
        'qwen_proxy_a_total{x="1",y="2"} 3\n'
        "# HELP qwen_proxy_b Tells.\n"
        "# TYPE qwen_proxy_b gauge\n"
        "qwen_proxy_b 1\n"
        "# HELP qwen_proxy_c_seconds Times.\n"
        "# TYPE qwen_proxy_c_seconds histogram\n"
        'qwen_proxy_c_seconds_bucket{x="1",le="0.5"} 2\n'
        'qwen_proxy_c_seconds_bucket{x="1",le="1.0"} 2\n'
        'qwen_proxy_c_seconds_bucket{x="1",le="+Inf"} 3\n'
        'qwen_proxy_c_seconds_sum{x="1"} 7.25\n'
        'qwen_proxy_c_seconds_count{x="1"} 3\n'
    )


def test_openmetrics_names_counters_without_their_ending_and_has_an_end() -> None:
    lines = exposition.render(ROWS, openmetrics=True, families=ALL).splitlines()

    assert lines[:3] == [
        "# HELP qwen_proxy_a Counts.",
        "# TYPE qwen_proxy_a counter",
        'qwen_proxy_a_total{x="0",y="2"} 4.5',
    ]
    assert lines[-1] == "# EOF"


@pytest.mark.parametrize("openmetrics", [False, True])
@settings(max_examples=25, deadline=None)
@given(x=st.text(max_size=8), y=st.sampled_from(['"', "\\", "\n", '\\"', "\\n"]))
def test_any_value_of_a_label_comes_back(openmetrics: bool, x: str, y: str) -> None:
    text = exposition.render({(COUNTER.name, x, y): [1.0]}, openmetrics=openmetrics, families=ALL)
    if not x.isprintable():
        return  # other characters end lines for Python, and not in the format
    assert parse(text, openmetrics=openmetrics).value(COUNTER.name, x=x, y=y) == 1


@pytest.mark.parametrize("openmetrics", [False, True])
def test_every_metric_can_be_rendered(openmetrics: bool) -> None:
    rows = {(f.name, *("v" for _ in f.labels)): zero_row(f) for f in FAMILIES}
    found = parse(exposition.render(rows, openmetrics=openmetrics), openmetrics=openmetrics)

    assert len(found.types) == len(FAMILIES)
    assert set(found.types.values()) == {"counter", "gauge", "histogram"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.name))
def test_names_are_those_that_prometheus_wants(family: Family) -> None:
    assert family.name.startswith("qwen_proxy_")
    assert family.name.endswith("_total") is (family.kind == "counter")
    if family.kind == "histogram":
        assert family.name.endswith("_seconds")
        assert family.buckets == tuple(sorted(set(family.buckets)))
    assert "le" not in family.labels
    assert family.help.endswith(".")
    assert "\n" not in family.help and "\\" not in family.help


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", exposition.TEXT),
        ("*/*", exposition.TEXT),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", exposition.TEXT),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
            exposition.OPENMETRICS,
        ),
    ],
)
def test_a_scraper_gets_the_format_that_it_names(accept: str, form: str) -> None:
    assert exposition.content_type(accept) == form
