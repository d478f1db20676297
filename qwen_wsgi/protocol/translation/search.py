"""Reads what a host says of its own web search, for the dialects that show the pages it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.json_access import Members, integer, items, objects, text

#: More pages than any host names; the rest is not shown.
_MOST: Final = 100


class Page(NamedTuple):
    """A page that a search found.

    Attributes:
        number: by which the answer names it: `[1]`.
    """

    url: str
    title: str
    number: int = 0


def is_tool(tool: Any) -> bool:
    """Whether it is OpenAI's tool in any version: `web_search_preview_2025_03_11`, …"""
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind.startswith("web_search")


def is_requested(request: Members) -> bool:
    """Whether a chat request wants the host to search, so that its answer may name pages."""
    if request.get("enable_search") is True or request.get("web_search_options") is not None:
        return True
    tools = request.get("tools")
    return bool(tools) and any(map(is_tool, items(tools)))


def pages_of(holder: Mapping[str, Any], inner: Mapping[str, Any]) -> list[Page] | None:
    """The pages that a web search found; None if nothing is said of a search.

    DashScope's form: `search_info: {"search_results": [{"index", "title", "url", …}]}`, upon
    `search_options.enable_source`. A page without an index has that of its place, from 1.

    Args:
        holder: a chunk or a completion.
        inner: its delta or message, where some servers put it.
    """
    info = inner.get("search_info") or holder.get("search_info")
    results = info.get("search_results") if isinstance(info, dict) else None
    if not isinstance(results, list) or not results:
        return None
    found = []
    for place, each in enumerate(objects(results), 1):
        if url := text(each.get("url")):
            number = integer(each.get("index"))
            found.append(
                Page(url, text(each.get("title")) or url, place if number is None else number)
            )
    return found[:_MOST]
