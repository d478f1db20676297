"""Which requests are identical for the response cache, and which of its answers are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.access.cache_policy import CachePolicy, policy_of
from qwen_wsgi.protocol.json_object import JsonObject, elements
from qwen_wsgi.upstream.answer_cache import canonical, digest, is_fixed, is_whole
from tests.kit.properties import examples

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def shuffled(value: Any) -> Any:
    """The same value with the members of all its objects in another order."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(list(value))}
    return [shuffled(each) for each in value] if isinstance(value, list) else value


@examples(60)
@given(VALUES, VALUES)
def test_the_order_of_members_does_not_matter_and_everything_else_does(
    first: Any, second: Any
) -> None:
    assert canonical(shuffled(first)) == canonical(first)
    # As JSON is written: 1 and 1.0 and true are different.
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (canonical(first) == canonical(second)) is same
    assert (digest("a", "chat", first).digest() == digest("a", "chat", second).digest()) is same


def test_who_asks_and_how_is_a_part_of_the_key() -> None:
    keys = {
        digest(owner, kind, said).digest()
        for owner in ("a", "b")
        for kind in ("chat", "unary")
        for said in (["a"], "a", [["a"]])
    }
    assert len(keys) == 12


@pytest.mark.parametrize(
    ("body", "fixed"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 1e-9}, False),
        ({"temperature": False}, False),
        ({"temperature": "0"}, False),
        ({"temperature": None, "seed": None}, False),
        ({"seed": 0}, True),
        ({"temperature": 1, "seed": 42}, True),
        ({}, False),
    ],
)
def test_a_request_that_leaves_nothing_to_chance(body: dict[str, Any], fixed: bool) -> None:
    assert is_fixed(JsonObject(json.dumps(body).encode())) is fixed


@pytest.mark.parametrize(
    ("finishes", "whole"),
    [
        (["stop"], True),
        (["length", "tool_calls"], True),
        ([], False),
        (["stop", None], False),
        (["content_filter"], False),
        (["error_finish"], False),
        ([{}], False),
    ],
)
def test_a_whole_answer(finishes: list[Any], whole: bool) -> None:
    value = {"choices": [{"finish_reason": finish} for finish in finishes]}
    assert is_whole(value) is whole


@pytest.mark.parametrize(
    ("ttl_s", "header", "policy"),
    [
        (0, "", None),
        (60, "", CachePolicy("a", 60)),
        (60, "no-cache", CachePolicy("a", 60, reads=False)),
        (60, "private, Max-Age=0", CachePolicy("a", 60, reads=False)),
        (60, "NO-STORE", CachePolicy("a", 60, keeps=False)),
        (60, "no-store,no-cache", None),
        (60, "max-age=60, no-transform", CachePolicy("a", 60)),
    ],
)
def test_what_a_client_says_of_the_cache(
    ttl_s: float, header: str, policy: CachePolicy | None
) -> None:
    assert policy_of("a", ttl_s, header) == policy


def test_the_elements_of_an_array_stay_as_they_are_written() -> None:
    assert elements(b'[{"a": 1.50}, 2e1 ,"x"]') == [b'{"a": 1.50}', b"2e1", b'"x"']
    for wrong in (b"{}", b"[1", b"[NaN]"):
        with pytest.raises(ValueError):
            elements(wrong)
