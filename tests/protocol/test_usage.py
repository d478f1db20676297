"""Token counts are taken as told, and never made up."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol.usage import Usage, parse


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, Usage()),
        (
            {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            Usage(prompt=1, completion=2, total=3),
        ),
        ({"prompt_tokens": 0, "total_tokens": 7}, Usage(prompt=0, total=7)),
        (
            {
                "prompt_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 8, "text_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            Usage(prompt=9, cached=8, reasoning=7),
        ),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, Usage()),
        ({"prompt_tokens_details": {}, "completion_tokens_details": []}, Usage()),
        ({"prompt_tokens": "5", "completion_tokens": 5.0, "total_tokens": True}, Usage()),
        ({"prompt_tokens": None}, Usage()),
    ],
    ids=str,
)
def test_counts_that_are_told_are_read_and_others_stay_unknown(
    told: dict[str, Any], expected: Usage
) -> None:
    assert parse(told) == expected


@pytest.mark.parametrize("told", [None, 5, "usage", [], True])
def test_what_is_no_object_is_no_usage(told: Any) -> None:
    assert parse(told) is None


def test_cached_tokens_at_the_top_are_read_where_the_details_do_not_tell() -> None:
    """A form of DashScope that qwen-code reads, too."""
    assert parse({"prompt_tokens": 9, "cached_tokens": 8}) == Usage(prompt=9, cached=8)
