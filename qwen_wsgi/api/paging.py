"""Pages of a list: what clients say of them (`limit`, `order`), and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from qwen_wsgi.errors import BadRequest

#: Entries of a page: OpenAI's default, and most, of all lists but that of files.
PAGE: Final = 20
LARGEST: Final = 100


def limit_of(query: Mapping[str, str], *, default: int = PAGE, largest: int = LARGEST) -> int:
    """How many entries a page has.

    Raises:
        BadRequest: it is not a number from 1 to `largest`.
    """
    limit = query.get("limit", str(default))
    if not (limit.isdecimal() and len(limit) <= 5 and 1 <= int(limit) <= largest):
        raise BadRequest(
            f"'limit' is a number from 1 to {largest}.", param="limit", code="invalid_value"
        )
    return int(limit)


def oldest_first(query: Mapping[str, str]) -> bool:
    """Whether the list begins with its oldest entry.

    Raises:
        BadRequest: `order` is neither `asc` nor `desc`.
    """
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("'order' is 'asc' or 'desc'.", param="order", code="invalid_value")
    return order == "asc"


def page(entries: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """OpenAI's form of a page of files, batches or videos."""
    return {
        "object": "list",
        "data": list(entries),
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
        "has_more": has_more,
    }
