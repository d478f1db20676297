"""What is asked of the usage page."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.accounting import usage
from qwen_wsgi.console.usage import question as usage_question
from qwen_wsgi.console.usage.question import CHOICES
from tests.fakes.clock import NOON_S


@given(st.dictionaries(st.sampled_from(["by", "last", "x"]), st.text(max_size=5)))
def test_any_address_is_a_question(arguments: dict[str, str]) -> None:
    found = usage_question.read(arguments, now=NOON_S, zone=UTC)
    assert found.last in CHOICES[found.by]
    assert found.span.since < NOON_S < found.span.until


def test_days_are_whole_also_where_the_clock_is_changed() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    for at in (
        datetime(2026, 10, 26, 0, 30, tzinfo=berlin),
        datetime(2026, 3, 30, 23, tzinfo=berlin),
    ):
        found = usage_question.read({"last": "7d"}, now=at.timestamp(), zone=berlin)
        assert len(usage.keys("day", found.span, berlin)) == 7
        assert datetime.fromtimestamp(found.span.since, berlin).hour == 0


def test_every_choice_has_as_many_bars_as_it_says() -> None:
    for by in ("day", "hour"):
        for last in CHOICES[by]:
            found = usage_question.read({"by": by, "last": last}, now=NOON_S, zone=UTC)
            assert len(usage.keys(found.by, found.span, UTC)) == int(last[:-1])
    assert usage_question.words_of("24h") == "the last 24 hours"
