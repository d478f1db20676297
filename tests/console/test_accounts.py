"""An account in the words of the overview."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qwen_wsgi.console import accounts
from qwen_wsgi.upstream.failures.causes import remedy_of

ROW: dict[str, Any] = {
    "name": "dashscope",
    "kind": "key",
    "origin": "environment DASHSCOPE_API_KEY",
    "endpoint": "https://host/v1",
    "state": "fresh",
    "detail": "API key is set",
    "credential": "…1234",
    "remedy": "",
    "usable": True,
    "cause": "",
    "left_alone_s": 0.0,
    "last_call": None,
    "plan": None,
}


def call(cause: str = "", answered_s: float | None = None) -> dict[str, Any]:
    return {"age_s": 30.0, "cause": cause, "answered_s": answered_s}


@pytest.mark.parametrize(
    ("changes", "mood", "state"),
    [
        ({}, "good", "ready, not tried yet"),
        ({"last_call": call()}, "good", "works"),
        ({"last_call": call("overloaded")}, "waiting", "last call failed"),
        ({"left_alone_s": 12.0, "cause": "overloaded"}, "waiting", "gets no calls now"),
        ({"usable": False, "state": "paused"}, "waiting", "gets no calls now"),
        ({"usable": False, "state": "missing"}, "bad", "no credential"),
        ({"usable": False, "state": "refused"}, "bad", "refused"),
        ({"usable": False, "state": "unpaid"}, "bad", "not paid"),
    ],
)
def test_a_state_has_a_word_and_a_mood(changes: dict[str, Any], mood: str, state: str) -> None:
    shown = accounts.shown({**ROW, **changes})

    assert (shown.mood, shown.state) == (mood, state)


def test_a_pause_is_told_with_its_cause_and_remedy() -> None:
    row = {**ROW, "left_alone_s": 12.0, "cause": "plan_window_spent"}
    shown = accounts.shown(row, in_flight=1)

    facts = dict(shown.facts)
    assert facts["no calls for"].startswith("12 s: ")
    assert "plan_window_spent" not in facts["no calls for"]
    assert facts["in flight"] == "1 call"
    assert shown.remedy == remedy_of("plan_window_spent")
    assert accounts.shown({**row, "remedy": "Pay."}).remedy == "Pay."


def test_the_last_failure_is_told_with_the_last_answer() -> None:
    shown = accounts.shown({**ROW, "last_call": call("new_cause", answered_s=7200.0)})

    assert dict(shown.facts)["last call"] == "failed 30 s ago: new cause; it answered 2 h ago"


def test_models_that_are_left_alone_are_named() -> None:
    paused = [SimpleNamespace(model="qwen3-max", seconds=5.0, cause="new_cause")]

    assert ("no calls for qwen3-max", "5 s: new cause") in accounts.shown(ROW, paused=paused).facts


def test_windows_of_a_plan_have_a_share() -> None:
    window = {
        **{"window": "5h", "kind": "fixed", "unit": "calls", "used": 9.0, "limit": 6.0},
        **{"share": 1.5, "spent": True, "told_by_vendor": False, "free_at": 0.0, "ends_at": 0.0},
        **{"forecast_at": None, "calls": 9, "tokens": 1},
    }
    shown = accounts.shown({**ROW, "plan": {"windows": [window, {**window, "share": None}]}})

    assert [each.share for each in shown.windows] == [1.0, None]
    assert "9 of 6 calls" in shown.windows[0].told
