"""The text of a web page. Pure."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urljoin

#: What holds no text for readers.
_SKIPPED: Final = frozenset({"script", "style", "noscript", "template", "svg", "head", "iframe"})
_BLOCKS: Final = frozenset(
    {"p", "div", "section", "article", "header", "footer", "main", "nav", "aside", "ul", "ol"}
    | {"table", "tr", "br", "hr", "blockquote", "pre", "form", "figure", "dl", "dt", "dd", "title"}
)
_HEADINGS: Final = {f"h{level}": "#" * level + " " for level in range(1, 7)}
#: Elements inside one another that are followed; a page with more is broken or hostile.
_DEEPEST: Final = 10_000
_BLANKS: Final = re.compile(r"[ \t\r\f\v]+")
_LINES: Final = re.compile(r" *\n *")
_EMPTY: Final = re.compile(r"\n{3,}")


def text_of(html: str, url: str) -> str:
    """The text of a page, with its title, headings, lists, and where its links lead."""
    reader = _Reader(url)
    reader.feed(html)
    reader.close()
    body = _BLANKS.sub(" ", "".join(reader.parts))
    body = _EMPTY.sub("\n\n", _LINES.sub("\n", body)).strip()
    title = " ".join("".join(reader.title).split())
    return f"# {title}\n\n{body}" if title and not body.startswith(f"# {title}") else body


class _Reader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self._url = url
        self._skipped: list[str] = []
        self._in_title = False
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        elif tag in _SKIPPED:
            if len(self._skipped) < _DEEPEST:
                self._skipped.append(tag)
        elif self._skipped:
            return
        elif tag in _HEADINGS:
            self.parts.append("\n\n" + _HEADINGS[tag])
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in _BLOCKS:
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif tag == "a" and len(self._links) < _DEEPEST:
            self._links.append(self._target(dict(attrs).get("href")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._skipped:
            while self._skipped.pop() != tag:
                pass
        elif self._skipped:
            return
        elif tag == "a" and self._links:
            if link := self._links.pop():
                self.parts.append(f" ({link})")
        elif tag in _HEADINGS or tag in ("p", "pre", "blockquote", "table"):
            self.parts.append("\n\n")
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._skipped:
            self.parts.append(data)

    def _target(self, href: str | None) -> str:
        if not href or href.startswith(("#", "javascript:", "data:")):
            return ""
        try:
            return urljoin(self._url, href)
        except ValueError:
            return ""
