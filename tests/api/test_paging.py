"""Pages of a list: what clients say of them, and how they are shown."""

from __future__ import annotations

import pytest

from qwen_wsgi.api.paging import limit_of, page
from qwen_wsgi.errors import BadRequest


@pytest.mark.parametrize(
    ("query", "limit"), [({}, 20), ({"limit": "1"}, 1), ({"limit": "100"}, 100)]
)
def test_a_limit(query: dict[str, str], limit: int) -> None:
    assert limit_of(query) == limit


@pytest.mark.parametrize("given", ["", "0", "101", "-1", "many", "²", "1.0", "9" * 5000])
def test_a_limit_that_is_refused(given: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        limit_of({"limit": given})
    assert (refusal.value.param, refusal.value.code) == ("limit", "invalid_value")
    assert "1 to 100" in refusal.value.message


def test_a_list_with_a_limit_of_its_own() -> None:
    assert limit_of({}, default=10_000, largest=10_000) == 10_000
    with pytest.raises(BadRequest, match="1 to 10000"):
        limit_of({"limit": "10001"}, largest=10_000)


def test_a_page() -> None:
    assert page([], has_more=False) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_a_page_with_entries() -> None:
    entries = [{"id": "a"}, {"id": "b"}]

    assert page(entries, has_more=True) == {
        "object": "list",
        "data": entries,
        "first_id": "a",
        "last_id": "b",
        "has_more": True,
    }
