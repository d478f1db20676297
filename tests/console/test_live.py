"""Calls on the live page: stages that add up, words for every end, and hostile names."""

from __future__ import annotations

import re
from datetime import UTC
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.accounting import record
from qwen_wsgi.console import files, live, timeline
from tests.kit.call_rows import call
from tests.kit.properties import examples

TOLD: dict[str, Any] = {
    "id": "req_1", "client": "anna", "endpoint": "/v1/messages", "account": "dashscope",
    "model": "qwen3.8-max", "state": "streaming", "started_at": 12.5, "seconds": 3.2,
    "seconds_to_first_byte": 0.5, "seconds_queued": 0.1, "seconds_connecting": 0.05,
    "longest_gap": 1.5, "gaps": [{"after": 1.0, "seconds": 1.5}],
    "streamed_tokens": 1234, "worker": 7,
}  # fmt: skip
MS = st.floats(-1e6, 1e9)


@given(MS, MS, st.none() | MS, MS, MS)
def test_stages_add_up_to_the_call(
    queue: float, connect: float, first: float | None, total: float, gap: float
) -> None:
    row = call(
        queue_ms=queue, connect_ms=connect, first_byte_ms=first, total_ms=total, longest_gap_ms=gap
    )
    found = timeline.of_row(row)
    assert sum(stage.ms for stage in found.stages) <= found.total_ms * (1 + 1e-9)
    end = 0.0
    for stage in found.stages:
        assert stage.begin_ms == pytest.approx(end)
        assert stage.ms > 0
        end = stage.begin_ms + stage.ms
    assert found.gap_ms >= 0
    widths = [int(w) for w in re.findall(r"h(\d+) />", timeline.drawn(found))]
    assert sum(widths) == (100 if found.stages else 0)  # without holes


def test_the_stages_of_a_call() -> None:
    row = call(queue_ms=100.0, connect_ms=20.0, first_byte_ms=500.0, total_ms=2000.0)
    assert [(stage.kind, stage.ms) for stage in timeline.of_row(row).stages] == [
        ("queue", 100.0),
        ("connect", 20.0),
        ("wait", 380.0),
        ("answer", 1500.0),
    ]
    silent = timeline.of_row(call(first_byte_ms=None, total_ms=900.0, connect_ms=0.0))
    assert [(stage.kind, stage.ms) for stage in silent.stages] == [("wait", 900.0)]
    told = timeline.of_call(TOLD)
    assert [stage.kind for stage in told.stages] == ["queue", "connect", "wait", "answer"]
    assert (told.total_ms, told.gap_ms) == (3200.0, 1500.0)


def test_the_silences_of_a_call_have_their_places() -> None:
    row = call(first_byte_ms=100.0, total_ms=2000.0, gaps="[[300.0, 500.0], [1500, 900.0]]")
    found = timeline.of_row(row)
    assert found.gaps == ((300.0, 500.0), (1500.0, 500.0))  # none is longer than the call
    bar = timeline.drawn(found, large=True)
    assert "<path class=gap d=M15.00,6h25.00 />" in bar
    assert "class=gap" not in timeline.drawn(found)
    assert timeline.of_call(TOLD).gaps == ((1000.0, 1500.0),)
    for text in (None, "", "{", '{"a": 1}', "[1]", "[[1]]", '[["x", 2]]'):
        assert timeline.of_row(call(gaps=text)).gaps == ()


def test_pages_show_the_silences_that_calls_note() -> None:
    """Pages may not load what notes them."""
    assert timeline._MOST_GAPS == record.MOST_GAPS
    assert f"of {record.GAP_S:g} s and more" in (files.TEMPLATES / "call.html").read_text()


def test_durations_for_people() -> None:
    assert [timeline.spoken(ms) for ms in (0, 850, 12_345, 245_000, 9e6)] == (
        ["0 ms", "850 ms", "12.3 s", "4 min 5 s", "2 h 30 min"]
    )


def test_every_end_has_its_words() -> None:
    outcomes = (
        "complete", "refused", "upstream_error", "client_gone", "cancelled", "cut_by_stop", "failed"
    )  # fmt: skip
    texts = [timeline.why(outcome, "")[0] for outcome in outcomes]
    assert len(set(texts)) == len(outcomes)
    assert timeline.why("refused", "model_not_found")[1].startswith("No account has this model")
    assert timeline.why("new", "new") == ["It ended as new."]


def test_a_call_in_flight() -> None:
    row = live.live_row(TOLD)
    assert row.cells == ("anna", "qwen3.8-max", "dashscope", "streams", "≈ 1,234", "3.0 s")
    assert (row.key, row.box) == ("7-12.5-req_1", "")
    far = live.live_row(TOLD, "b0b0", "kitchen")
    assert (far.key, far.box, far.cells[6:]) == ("b0b07-12.5-req_1", "b0b0", ("kitchen",))
    early = {**TOLD, "model": None, "account": None, "streamed_tokens": 0, "state": "waiting"}
    assert live.live_row(early).cells[1:5] == ("/v1/messages", "–", "waits", "–")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)


@examples(100)
@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80))
def test_hostile_names_stay_texts(name: str, error: str, id: str) -> None:
    row = call(client=name, model=error, account=id, error=error, request_id=id, outcome="failed")
    tags = Tags()
    tags.feed(live.ended_row(row, UTC))
    assert tags.found <= {"tr", "td", "a", "svg", "path"}


def test_a_row_is_small_and_links_to_the_rest() -> None:
    html = live.ended_row(call(error="<x>", outcome="refused"), UTC)
    assert f"<a href=live/call?at={call().at!r}>" in html
    assert "&lt;x&gt;" in html
    assert len(live.ended_row(call(), UTC)) < 250
    assert live.ended_row(call(), UTC, "<b>").endswith("<td>&lt;b&gt;")
    assert "<td>12:00:00<td>" in live.ended_row(call(), UTC, now=call().at + 11 * 3600)
    assert "<td>11-20 12:00<td>" in live.ended_row(call(), UTC, now=call().at + 13 * 3600)


#: Of no call a row tells more.
WIDEST = call(
    at=1764452378.1234567, outcome="upstream_error", queue_ms=3e7, connect_ms=2e7,
    first_byte_ms=1e8, total_ms=6e8, input_tokens=10**12, output_tokens=9_999_999,
)  # fmt: skip


@examples(100)
@given(st.text(max_size=300), st.sampled_from("&'\"<é漢\U0001f600x"))
def test_no_name_makes_a_row_large(name: str, sign: str) -> None:
    for each in (name, sign * 300):
        row = WIDEST._replace(client=each, model=each, account=each, error=each, request_id=each)
        assert len(live.ended_row(row, UTC, now=row.at + 1e6).encode()) <= 378
        assert len(live.ended_row(row, UTC, each).encode()) <= 398


def test_the_boxes_whose_calls_are_shown() -> None:
    assert live.places("hall", {"b0b01": "kitchen"}) == {"": "hall", "b0b01": "kitchen"}
    assert live.places("box", {"b0b01": "box", "c0c02": "box"}) == {
        "": "box",
        "b0b01": "box b0b0",
        "c0c02": "box c0c0",
    }
    told = live.told_of_boxes
    assert told(["hall"], 0, False) == "Calls of this box (hall); no other one tells any."
    assert told(["hall", "kitchen"], 0, False) == "Calls of 2 boxes: hall, kitchen."
    assert "1 more cannot be read: another QWEN_PROXY_STATE_KEY" in told(["a", "b"], 1, False)
    assert told(["hall"], 0, True) == (
        "Redis is away, so only the calls of this box (hall) are shown."
    )


def test_tokens_and_money_that_nobody_knows_stay_unknown() -> None:
    none = {"input_tokens": None, "output_tokens": None, "money_micro": None}
    assert live.tokens(call()) == "100 / 10"
    assert live.tokens(call(**none, unknown_usage=1)) == "unknown"
    assert live.tokens(call(**none)) == "–"
    assert live.tokens(call(output_tokens=None)) == "100 / ?"
    assert live.money(call()) == "0.000200 USD"
    assert live.money(call(**none)) == "unknown"
    assert dict(live.facts(call(**none), UTC))["input tokens"] == "unknown"
