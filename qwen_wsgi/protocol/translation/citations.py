"""Finds the places where an answer names the pages of a web search.

Upon `search_options.enable_citation` Model Studio's models write marks into their text: `[1]`, or
`[ref_1]`, with the number of a page. The text stays as it is; the dialects point at the marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.answer_text import joined_text
from qwen_wsgi.protocol.json_access import objects, text
from qwen_wsgi.protocol.translation import search
from qwen_wsgi.protocol.translation.search import Page

#: What matters in a text: line ends, runs of the signs that enclose code, and marks. The text of a
#: link, `[1](https://…)`, is no mark.
_TOKEN: Final = re.compile(r"\n|`+|~+|\[(?:ref_)?([0-9]{1,4})\](?!\()")
#: A token at the end of a piece that what follows may change. Also half of a surrogate pair, which
#: is one character together with the other half.
_BEGUN: Final = re.compile(
    r"(?:\[(?:r|re|ref|(?:ref_)?(?:[0-9]{0,4}|[0-9]{1,4}\]))|`{1,16}|~{1,16}|[\ud800-\udbff])\Z"
)
_LONGEST: Final = 16
#: So many signs in a row at the beginning of a line begin a block of code.
_FENCE: Final = 3

#: Marks of one text that are looked at. Each becomes a hundred bytes and more.
_MOST: Final = 1000
#: Characters of the addresses and titles of pages; further pages are left out.
_MOST_PAGE_CHARS: Final = 1 << 20
#: What a page takes besides.
_PAGE_CHARS: Final = 200


class Mark(NamedTuple):
    """A mark in a text: `text[start:end]` is `[1]`, for example."""

    number: int
    start: int
    end: int


class Examined(NamedTuple):
    """A part of a text, and the marks in it.

    Attributes:
        start: where it begins in the whole text, in characters.
    """

    text: str
    start: int
    marks: list[Mark]

    def cut(self) -> Iterator[tuple[str, int | None]]:
        """Cut it at its marks: pieces without a number, and marks with theirs."""
        at = 0
        for number, start, end in self.marks:
            begin = start - self.start
            if begin > at:
                yield self.text[at:begin], None
            at = end - self.start
            yield self.text[begin:at], number
        if at < len(self.text):
            yield self.text[at:], None


class MarkReader:
    """Finds the marks of one text that comes in pieces, but for those inside of code.

    Code is a fenced block (Markdown's ``` or ~~~), or what stands between backticks in one line.

    Attributes:
        position: of the end of the text that was examined, in characters.
    """

    __slots__ = ("_blank", "_fence", "_held", "_info", "_inline", "_left", "position")

    def __init__(self) -> None:
        self.position = 0
        self._held = ""
        self._left = _MOST
        #: The signs that began the open block of code, or "".
        self._fence = ""
        #: Whether this is still the line that began it.
        self._info = False
        #: How many backticks began the open code inside of a line.
        self._inline = 0
        #: Whether the line has had only white space so far.
        self._blank = True

    def feed(self, piece: str) -> Examined:
        """Take a piece; return the text that can be judged now.

        At most 16 characters, which may be the beginning of a mark, wait for the next piece.
        """
        known = self._held + piece
        begun = _BEGUN.search(known, max(0, len(known) - _LONGEST))
        end = len(known) if begun is None else begun.start()
        self._held = known[end:]
        return self._examined(known[:end])

    def flush(self) -> Examined:
        """Return the rest of the text; more may follow."""
        rest, self._held = self._held, ""
        return self._examined(rest)

    def _examined(self, known: str) -> Examined:
        if not known.isascii():
            known = joined_text((known,))
        examined = Examined(known, self.position, list(self._marks(known)))
        self.position += len(known)
        return examined

    def _marks(self, known: str) -> Iterator[Mark]:
        at = 0
        for found in _TOKEN.finditer(known):
            start, end = found.span()
            if start > at and not known[at:start].isspace():
                self._blank = False
            at = end
            token = found[0]
            if token == "\n":
                self._blank, self._info, self._inline = True, False, 0
                continue
            if token[0] != "[":
                self._run(token)
            elif not self._fence and not self._inline and self._left:
                self._left -= 1
                yield Mark(int(found[1]), self.position + start, self.position + end)
            self._blank = False
        if at < len(known) and not known[at:].isspace():
            self._blank = False

    def _run(self, run: str) -> None:
        """Note a run of backticks or tildes."""
        if self._fence:
            if self._blank and run[0] == self._fence[0] and len(run) >= len(self._fence):
                self._fence = ""
            elif self._info and run[0] == "`" == self._fence[0]:
                # Backticks in the line of the fence: it was code inside of a line.
                self._inline = 0 if run == self._fence else len(self._fence)
                self._fence = ""
        elif self._blank and len(run) >= _FENCE:
            self._fence, self._info = run, True
        elif run[0] == "`":
            if not self._inline:
                self._inline = len(run)
            elif self._inline == len(run):
                self._inline = 0


class Sources:
    """The pages that the search for one answer found, by their numbers."""

    __slots__ = ("_last", "_left", "pages")

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self._left = _MOST_PAGE_CHARS
        self._last: Any = None

    def take(self, holder: Mapping[str, Any], inner: Mapping[str, Any]) -> None:
        """Read a chunk with its delta, or a completion with its message.

        Hosts may repeat the pages in every chunk.
        """
        info = inner.get("search_info") or holder.get("search_info")
        if not info or info == self._last:
            return
        self._last = info
        for page in search.pages_of(holder, inner) or ():
            if self.pages.get(page.number) == page:
                continue
            self._left -= len(page.url) + len(page.title) + _PAGE_CHARS
            if self._left < 0:
                return
            self.pages[page.number] = page

    def named(self, numbers: Iterable[int]) -> list[Page]:
        """The pages with these numbers, each once; numbers without a page are left out."""
        return [self.pages[each] for each in dict.fromkeys(numbers) if each in self.pages]

    def knows(self, numbers: Iterable[int]) -> bool:
        """Whether there is a page with one of these numbers."""
        return not self.pages.keys().isdisjoint(numbers)


class Citation(NamedTuple):
    """A place in a text, and the page that it names."""

    page: Page
    start: int
    end: int

    def in_chat(self) -> dict[str, Any]:
        """Render it as an annotation of chat; `end_index` is behind the last character."""
        return {"type": "url_citation", "url_citation": self._members()}

    def in_response(self) -> dict[str, Any]:
        """Render it as an annotation of the Responses API."""
        return {"type": "url_citation", **self._members()}

    def _members(self) -> dict[str, Any]:
        return {
            "start_index": self.start,
            "end_index": self.end,
            "title": self.page.title,
            "url": self.page.url,
        }


class CitedText:
    """Collects the citations of one text. A mark whose page is unknown waits for the end.

    Args:
        sources: grow meanwhile.

    Attributes:
        found: whether there was one.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._reader = MarkReader()
        self._waiting: list[Mark] = []
        self.found = False

    @property
    def length(self) -> int:
        """Of the text, in characters; after `end`."""
        return self._reader.position

    def feed(self, piece: str) -> list[Citation]:
        """Take a piece; return the citations that are complete now."""
        return self._named(self._reader.feed(piece).marks)

    def end(self) -> list[Citation]:
        """Return the other citations."""
        waiting, self._waiting = self._waiting, []
        return self._named(waiting + self._reader.flush().marks)

    def _named(self, marks: list[Mark]) -> list[Citation]:
        found = []
        for mark in marks:
            if (page := self._sources.pages.get(mark.number)) is None:
                self._waiting.append(mark)
            else:
                found.append(Citation(page, mark.start, mark.end))
                self.found = True
        return found


def given(annotations: Any) -> Iterator[Citation]:
    """The citations that a host itself names; servers like OpenRouter do.

    Chat has `{"type": "url_citation", "url_citation": {"start_index", "end_index", "title",
    "url"}}`, the Responses API the same without the inner object.
    """
    for each in objects(annotations):
        if each.get("type") != "url_citation":
            continue
        inner = each.get("url_citation")
        source = inner if isinstance(inner, dict) else each
        start, end = source.get("start_index"), source.get("end_index")
        if url := text(source.get("url")):
            title = source.get("title")
            yield Citation(
                Page(url, title if isinstance(title, str) else url),
                start if type(start) is int else 0,
                end if type(end) is int else 0,
            )
