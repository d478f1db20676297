"""How long to wait: headers, dates, and what texts say."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.failures import classify, retry_after

NOW = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC).timestamp()
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        # with their zone
        ("The quota will reset at 11-20 14:20:00 UTC.", 4 * HOUR + 1200),
        ("It will reset at 2026-11-20 19:00:00 +0800 CST.", HOUR),
        ("Plan limit: 9. Reset at 2026-11-20T12:00:00Z", 2 * HOUR),
        ("resets on 2026-11-20 12:00 GMT", 2 * HOUR),
        ("Reset at 2026-11-20T04:30:00.5-06:00", HOUR / 2),
        # without: the vendor's clock or UTC, the earlier that is to come
        ("reset at 2026-11-20 19:00:00", HOUR),
        ("reset at 2026-11-20 11:00:00", HOUR),
        ("您的限额将在 2026-11-20 18:30:00 重置。", HOUR / 2),
        # a day at most, so that what was topped up meanwhile is noticed
        ("will reset at 11-27 14:20:00 UTC", DAY),
        ("will reset at 01-01 00:00:00 UTC", DAY),
        # gone, or no time at all
        ("reset at 2026-11-20 09:59:59 UTC", None),
        ("reset at 2026-02-31 09:59:59 UTC", None),
        ("reset at 0000-13-99 99:99:99", None),
        ("The quota will reset later.", None),
        ("It happened at 2026-11-20 19:00:00", None),
        # from now
        ("Please try again in 6m0s. Visit x", 360.0),
        ("Please retry in 44.09s.", 44.09),
        ("Please try again in 350ms.", 0.35),
        ("Resets in 9h22m20s.", 9 * HOUR + 22 * 60 + 20),
        ("Your quota will reset after 161h39m41s.", DAY),
        ("(resets in 1 day)", DAY),
        ("try again in 2 hours 30 minutes", 2.5 * HOUR),
        ("try again in 5 milliseconds", 0.005),
        ("try again in 3 sheep", None),
        ("try again in a minute", None),
        ("please try again later.", None),
        ("", None),
    ],
)
def test_what_a_text_says(text: str, seconds: float | None) -> None:
    assert retry_after.named_s(text, now=NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("The quota will reset at 11-20 14:20:00 UTC.", 4 * HOUR + 1200),
        ("will reset at 11-27 10:00:00 UTC", 7 * DAY),
        ("Resets in 161h39m41s.", 161 * HOUR + 39 * 60 + 41),
        ("will reset at 11-20 09:59:59 UTC", None),
        ("Resets in 900 days.", None),
        ("quota exceeded", None),
    ],
)
def test_when_a_window_ends(text: str, seconds: float | None) -> None:
    assert retry_after.reset_s(text, now=NOW) == seconds


def test_a_year_that_is_not_named_is_the_next_one_that_comes() -> None:
    new_years_eve = datetime(2026, 12, 31, 23, 0, 0, tzinfo=UTC).timestamp()

    assert retry_after.named_s("will reset at 01-01 01:00:00 UTC", now=new_years_eve) == 2 * HOUR


def test_without_a_clock_a_time_of_day_says_nothing() -> None:
    assert retry_after.named_s("reset at 2026-11-20 19:00:00", now=None) is None
    assert retry_after.named_s("try again in 3s", now=None) == 3


@pytest.mark.parametrize(
    ("headers", "now", "seconds"),
    [
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT"}, NOW, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 09:00:00 GMT"}, NOW, 0.0),
        ({"retry-after": "Mon, 20 Nov 2028 10:00:30 GMT"}, NOW, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT"}, None, None),
        (
            {
                "retry-after": "Fri, 20 Nov 2026 10:00:30 GMT",
                "date": "Fri, 20 Nov 2026 10:00:10 GMT",
            },
            None,
            20.0,
        ),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": "today"}, None, None),
        ({"retry-after": "Fri, 99 Nov 2026 10:00:30 GMT"}, NOW, None),
        ({"retry-after-ms": "1500", "retry-after": "7"}, None, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, None, 7.0),
        ({"retry-after-ms": "-1"}, None, None),
        ({}, NOW, None),
    ],
)
def test_what_headers_say(
    headers: dict[str, str], now: float | None, seconds: float | None
) -> None:
    assert retry_after.retry_after_s(headers, now=now) == seconds


def refused(message: str, headers: dict[str, str], *, now: float | None) -> float | None:
    body = json.dumps({"error": {"code": "insufficient_quota", "message": message}}).encode()
    error = classify.from_response(
        429, headers, body, account="a", family=Family.TOKEN_PLAN, now=now
    )
    assert error.code == "insufficient_quota"
    assert error.retry_after_s is None  # no SDK should try
    assert error.failure is not None
    return error.failure.wait_s


SPENT = (
    "Your token-plan 1-week quota has been exhausted. The quota will reset at 11-20 14:00:00 UTC."
)


def test_an_account_is_left_alone_until_its_plan_begins_anew() -> None:
    assert refused(SPENT, {}, now=NOW) == 4 * HOUR
    assert refused(SPENT, {"date": "Fri, 20 Nov 2026 13:00:00 GMT"}, now=None) == HOUR
    assert refused(SPENT, {"date": "Fri, 20 Nov 2026 13:00:00 GMT"}, now=NOW) == 4 * HOUR
    assert refused(SPENT, {"retry-after": "16097"}, now=NOW) == 16097
    assert refused(SPENT, {}, now=None) == 300  # the table's


def test_a_frame_and_an_error_as_an_answer_know_the_time_by_who_asks() -> None:
    frame = classify.from_frame({"message": SPENT}, account="a", now=NOW)
    answer = classify.from_error_finish(SPENT, account="a", now=NOW)

    for error in (frame, answer):
        assert error.failure is not None
        assert (error.failure.cause, error.failure.wait_s) == ("plan_window_spent", 4 * HOUR)


def test_a_time_in_the_text_of_a_throttle_is_told_to_the_client() -> None:
    body = b'{"error": {"message": "Rate limit reached. Please try again in 20s.", "code": null}}'
    error = classify.from_response(429, {}, body, account="a")

    assert error.retry_after_s == 20
    assert error.failure is not None and error.failure.wait_s == 20
