"""Token counts are the upstream's, never estimated."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol.usage import Usage, normalized, parse, total


@pytest.mark.parametrize(
    ("usage", "expected"),
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
    usage: dict[str, Any], expected: Usage
) -> None:
    assert parse(usage) == expected


@pytest.mark.parametrize("usage", [None, 5, "usage", [], True])
def test_what_is_no_object_is_no_usage(usage: Any) -> None:
    assert parse(usage) is None


def test_cached_tokens_at_the_top_are_read_where_the_details_do_not_tell() -> None:
    """A form of DashScope that qwen-code reads, too."""
    assert parse({"prompt_tokens": 9, "cached_tokens": 8}) == Usage(prompt=9, cached=8)


@pytest.mark.parametrize(
    "details",
    [
        {"cache_write_tokens": 7, "cache_creation_input_tokens": 8},
        {"cache_creation_input_tokens": 7},
        {"cache_creation": {"ephemeral_5m_input_tokens": 7}},
        {"cache_creation_input_tokens": None, "cache_creation": {"ephemeral_5m_input_tokens": 7}},
    ],
    ids=str,
)
def test_tokens_written_to_a_cache_are_read_wherever_they_stand(details: dict[str, Any]) -> None:
    assert parse({"prompt_tokens_details": details}) == Usage(cache_written=7)


def test_a_total_without_its_parts_is_a_total() -> None:
    """No prompt has no tokens."""
    assert parse({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 7}) == Usage(total=7)
    assert parse({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}) == Usage(0, 0, 0)


@pytest.mark.parametrize(
    ("usage", "details"),
    [
        ({"cached_tokens": 3}, {"cached_tokens": 3}),
        ({"cached_tokens": 3, "prompt_tokens_details": None}, {"cached_tokens": 3}),
        ({"cached_tokens": 3, "prompt_tokens_details": {"a": 1}}, {"a": 1, "cached_tokens": 3}),
        (
            {"prompt_tokens_details": {"cache_creation_input_tokens": 0}},
            {"cache_creation_input_tokens": 0, "cache_write_tokens": 0},
        ),
        (
            {"prompt_tokens_details": {"cache_creation": {"ephemeral_5m_input_tokens": 4}}},
            {"cache_creation": {"ephemeral_5m_input_tokens": 4}, "cache_write_tokens": 4},
        ),
    ],
    ids=str,
)
def test_counts_of_the_cache_are_added_where_openai_has_them(
    usage: dict[str, Any], details: dict[str, Any]
) -> None:
    usage["total_tokens"] = 9

    assert normalized(usage) == {**usage, "prompt_tokens_details": details}


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens_details": None},
        {"prompt_tokens_details": []},
        {"cached_tokens": "3"},
        {"cached_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
        {"prompt_tokens_details": {"cache_write_tokens": 1, "cache_creation_input_tokens": 2}},
    ],
    ids=str,
)
def test_a_usage_that_lacks_nothing_stays_the_same_object(usage: dict[str, Any]) -> None:
    assert normalized(usage) is usage


@pytest.mark.parametrize(
    ("used", "sum"),
    [
        ([], None),
        ([Usage(1, 2, 3), None], None),
        ([Usage(1, 2, 3)], Usage(1, 2, 3)),
        ([Usage(1, 2, 3), Usage(10, 20, 30, 5)], Usage(11, 22, 33, 5)),
        ([Usage(1, 2), Usage(10, 20, 30, 5, 6, 7), Usage(1, 1, 1, 1, 1, 1)],
            Usage(12, 23, None, 6, 7, 8)),
    ],
)  # fmt: skip
def test_a_sum_is_known_only_if_all_of_it_is(used: list[Usage | None], sum: Usage | None) -> None:
    assert total(used) == sum
