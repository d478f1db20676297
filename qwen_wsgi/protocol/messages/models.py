"""Renders the list of models as Anthropic does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.messages.validation import invalid, wrong

#: The largest page of Anthropic's API, and the default: many clients read only the first page.
_MOST: Final = 1000


def model(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Render an OpenAI model object as Anthropic's.

    Shape: `{"type": "model", "id", "display_name", "created_at", "lifecycle": "active",
    "max_input_tokens": int|null, "max_tokens": int|null}`, the time in RFC 3339.
    """
    name = entry.get("name")
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": name if isinstance(name, str) and name else entry["id"],
        "created_at": _time(entry.get("created")),
        "lifecycle": "active",
        "max_input_tokens": json_access.integer(entry.get("context_length")),
        "max_tokens": json_access.integer(entry.get("max_output_tokens")),
    }


def page(entries: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Render a page of the list; `query` may have `limit`, `after_id` and `before_id`.

    Shape: `{"data": [...], "has_more", "first_id", "last_id"}`.

    Raises:
        BadRequest: the limit is not a number from 1 to 1000, or no model has the id.
    """
    requested = query.get("limit", str(_MOST))
    if not (
        requested.isascii()
        and requested.isdigit()
        and len(requested) < 5
        and 1 <= int(requested) <= _MOST
    ):
        raise wrong("limit", f"a valid integer from 1 to {_MOST}")
    limit = int(requested)
    data = [model(entry) for entry in entries]
    if before := query.get("before_id"):
        left = data[: _index(data, before, "before_id")]
        data, more = left[-limit:], len(left) > limit
    else:
        after = query.get("after_id")
        left = data[_index(data, after, "after_id") + 1 :] if after else data
        data, more = left[:limit], len(left) > limit
    return {
        "data": data,
        "has_more": more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _index(data: Sequence[Mapping[str, Any]], id: str, param: str) -> int:
    for index, entry in enumerate(data):
        if entry["id"] == id:
            return index
    raise invalid(param, f"there is no model '{id[:128]}'")


def _time(epoch_s: Any) -> str:
    """A host's time in RFC 3339; the epoch for an unknown one, as in Anthropic's API."""
    try:
        time = datetime.fromtimestamp(epoch_s, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        time = datetime.fromtimestamp(0, UTC)
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
