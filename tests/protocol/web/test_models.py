"""Models of the web API, and their variants."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol.web.models import FALLBACK, Named, entries_of, fallback_entries, named


def test_the_documented_names_are_27() -> None:
    offered = fallback_entries()
    assert set(FALLBACK) == set(offered)
    assert len(FALLBACK) == len(offered) == 27
    assert offered["qwen-max-thinking"] == {"variant_of": "qwen-max"}
    assert offered["qwen-deep-research"] == {}


@pytest.mark.parametrize(
    ("name", "listed", "expected"),
    [
        ("qwen-max", (), Named("qwen-max", "")),
        ("qwen-max-thinking", (), Named("qwen-max", "thinking")),
        ("qwen-max-deep-research", (), Named("qwen-max", "deep-research")),
        ("qwen-deep-research", (), Named("qwen-deep-research", "deep-research")),
        ("qwen3-235b-thinking", ("qwen3-235b-thinking",), Named("qwen3-235b-thinking", "")),
        ("qwen-max-image", (), Named("qwen-max", "image")),
    ],
)
def test_the_end_of_a_name_is_a_variant_unless_the_host_lists_it(
    name: str, listed: tuple[str, ...], expected: Named
) -> None:
    assert named(name, listed) == expected


def model(id: str, meta: Any) -> dict[str, Any]:
    return {"id": id, "info": {"meta": meta}}


def test_variants_follow_from_what_the_host_says() -> None:
    meta: dict[str, Any] = {
        "abilities": {"thinking": True},
        "chat_type": ["t2t", "search", 5, "deep_research"],
    }
    meta["max_context_length"] = 1000
    value = {"data": [model("a", meta), model("b", {}), model("a-search", {}), {"id": 5}, 5]}
    found = entries_of(value)

    assert found is not None
    assert list(found) == ["a", "b", "a-search", "a-thinking", "a-deep-research"]
    assert found["a-thinking"]["variant_of"] == "a"
    assert "variant_of" not in found["a-search"]
    assert found["a-thinking"]["context_length"] == 1000
    assert entries_of({"success": True, "data": value}) == found


@pytest.mark.parametrize("value", [None, [], {}, {"data": 5}, {"data": {"data": {}}}])
def test_what_is_no_list_is_none(value: Any) -> None:
    assert entries_of(value) is None
