"""Reads what a host says of its own web search, for the dialects that show the pages it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.json_access import objects, text

#: More pages than any host names; the rest is not shown.
_MOST: Final = 100


class Page(NamedTuple):
    """A page that a search found."""

    url: str
    title: str


def pages_of(holder: Mapping[str, Any], inner: Mapping[str, Any]) -> list[Page] | None:
    """The pages that a web search found; None if nothing is said of a search.

    DashScope's form: `search_info: {"search_results": [{"index", "title", "url", …}]}`, upon
    `search_options.enable_source`.

    Args:
        holder: a chunk or a completion.
        inner: its delta or message, where some servers put it.
    """
    info = holder.get("search_info") or inner.get("search_info")
    results = info.get("search_results") if isinstance(info, dict) else None
    if not isinstance(results, list) or not results:
        return None
    found = ((text(each.get("url")), text(each.get("title"))) for each in objects(results))
    return [Page(url, title or url) for url, title in found if url][:_MOST]
