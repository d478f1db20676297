"""The text of a web page.

Also a program of its own (`python -I -S page_text.py URL`, a page on its standard input): pages are
written by anybody, and some keep Python's parser busy for minutes, which has no end from outside.
"""

from __future__ import annotations

import re
import resource
import sys
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
_EMPTY: Final = re.compile(r"\n{3,}")


def text_of(html: str, url: str) -> str:
    """The text of a page, with its title, headings, lists, and where its links lead."""
    reader = _Reader(url)
    reader.feed(html)
    reader.close()
    lines = [_BLANKS.sub(" ", line).strip() for line in "".join(reader.parts).split("\n")]
    body = _EMPTY.sub("\n\n", "\n".join(lines)).strip()
    title = " ".join("".join(reader.title).split())
    return f"# {title}\n\n{body}" if title and not body.startswith(f"# {title}") else body


class _Reader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.title: list[str] = []
        self._url = url
        #: The element that is being skipped, and how many of its kind are open within it.
        self._skipped = ""
        self._depth = 0
        self._in_title = False
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        elif self._skipped:
            self._depth += tag == self._skipped
        elif tag in _SKIPPED:
            self._skipped, self._depth = tag, 1
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
        elif self._skipped:
            self._depth -= tag == self._skipped
            if not self._depth:
                self._skipped = ""
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


#: Of the program: CPU seconds, and bytes of memory.
CPU_S: Final = 5
_MEMORY: Final = 1 << 30
#: Bytes of the text: each link, however short, may become a URL of thousands of characters.
_LONGEST: Final = 16 * 1024 * 1024


def main() -> None:
    """Read a page and write its text, within bounds."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    page = sys.stdin.buffer.read().decode(errors="replace")
    text = text_of(page, sys.argv[1]).encode(errors="replace")
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + b"\n[cut: the text of the page is longer]"
    sys.stdout.buffer.write(text)


if __name__ == "__main__":
    main()
