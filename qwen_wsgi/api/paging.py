"""Reads what clients say of a page of a list: `limit`, `order`, `after`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qwen_wsgi.errors import BadRequest

#: Entries of a page: OpenAI's default, and most.
_PAGE: Final = 20
_LARGEST: Final = 100


def limit_of(query: Mapping[str, str]) -> int:
    """How many entries a page has.

    Raises:
        BadRequest: it is no number from 1 to 100.
    """
    limit = query.get("limit", str(_PAGE))
    if not (limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= _LARGEST):
        raise BadRequest(
            f"'limit' is a number from 1 to {_LARGEST}.", param="limit", code="invalid_value"
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
