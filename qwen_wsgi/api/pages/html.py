"""Puts HTML together: whatever is no `Html` yet is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from flask import Response

from qwen_wsgi.api.flask_app import FinishedResponse

#: Nothing is loaded from elsewhere, no script and no style stands in a page, and no other site
#: shows a page of ours inside its own.
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_QUOTED: Final = re.compile(r"`([^`]+)`")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def joined(*parts: str) -> Html:
    """Several parts behind one another."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def between(parts: Iterable[str], mark: str = ", ") -> list[str]:
    """The parts, with a mark between each two."""
    found: list[str] = []
    for part in parts:
        found += [mark, part] if found else [part]
    return found


def tag(name: str, *content: str, **attributes: str) -> Html:
    """An element; `class_` and `data_left` become `class` and `data-left`."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{named}>{joined(*content)}</{name}>")


def prose(text: str) -> Html:
    """A sentence in which `code` stands between backticks."""
    found = _QUOTED.split(text)
    return joined(*(tag("code", each) if at % 2 else each for at, each in enumerate(found)))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Html:
    """A table; nothing where there are no rows."""
    if not rows:
        return Html()
    first = tag("tr", *(tag("th", each) for each in head))
    return tag("table", first, *(tag("tr", *(tag("td", each) for each in row)) for row in rows))


def page(title: str, *content: str) -> bytes:
    """A whole page."""
    head = joined(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        Html('<link rel="stylesheet" href="/pages/page.css">'),
        Html('<script src="/pages/page.js" defer></script>'),
    )
    body = tag("body", tag("main", *content))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'.encode()


def response(body: bytes, *, kind: str = "text/html; charset=utf-8", status: int = 200) -> Response:
    """A page, or a part of one, with the headers that keep it safe."""
    made = FinishedResponse(body, status=status, content_type=kind)
    made.headers.add("content-security-policy", _POLICY)
    made.headers.add("x-content-type-options", "nosniff")
    made.headers.add("referrer-policy", "no-referrer")
    return made
