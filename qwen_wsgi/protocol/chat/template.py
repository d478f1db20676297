"""Forwards chunks that differ from the last one only in their text, without parsing each.

Nearly all chunks of a stream are equal except for one string: a piece of the answer, of the
thinking, or of a tool call's arguments. All of them are rewritten the same way, so the bytes before
and after the string are learned from one chunk, together with what the client got for it. Then a
read of many such events costs a search and a comparison instead of parsing.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_left
from operator import itemgetter
from typing import Final, Protocol

#: The members whose text may differ. Empty texts do not count: chunks have empty members, too.
_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments)": ?"((?:[^"\\]|\\.)+)"'
)

#: No template is learned from larger events, such as images or sound.
_LARGEST_BYTES: Final = 4096

#: After so many templates of which none fitted two chunks in a row, no more are learned.
_LESSONS: Final = 8

#: So much of an event's end tells whether the next one may be like it.
_TAIL: Final = 6

_NOTHING: Final = (b"", 0, 0)


class Growing(Protocol):
    """What texts are added to: a list, or a call's arguments."""

    def extend(self, pieces: list[bytes], /) -> None:
        """Add some texts, each the inside of a JSON string."""


class Template:
    """The upstream's chunk and the one sent for it, each without its text.

    Attributes:
        growing: gets the texts of forwarded chunks, as JSON; or None.
    """

    __slots__ = (
        *("_after", "_before", "_same", "_seam", "_sent_after", "_sent_before"),
        "growing",
    )

    def __init__(self, event: tuple[bytes, bytes], sent: tuple[bytes, bytes]) -> None:
        """Take the bytes before and after the text, including the blank line."""
        self._before, self._after = event
        self._sent_before, self._sent_after = sent
        self._same = event == sent
        self._seam = self._after + self._before
        self.growing: Growing | None = None

    @staticmethod
    def learn(event: bytes, sent: bytes) -> Template | None:
        """Learn from an event (with its blank line) and what the client got for it.

        Returns None unless both have exactly one text.
        """
        if len(event) > _LARGEST_BYTES or event.count(b"\n") != 2 or sent.count(b"\n") != 2:
            return None
        theirs = _around_text(event)
        ours = theirs if sent == event else _around_text(sent)
        return Template(theirs, ours) if theirs is not None and ours is not None else None

    def carry(self, block: bytes, start: int = 0) -> tuple[bytes, int, int]:
        """Rewrite the events from a place in a block on that fit the template, up to the first that
        does not.

        Returns the bytes for the client, how many bytes of the block they replace, and how many
        events.
        """
        before, after = self._before, self._after
        if not block.startswith(before, start):
            return _NOTHING
        # The last events of a stream often come in one read with other chunks.
        first = start + len(before)
        end = block.rfind(after, first)
        if end < 0:
            return _NOTHING
        if block.find(b"\n", first) == end + len(after) - 2:
            texts = [block[first:end]]
            if not _are_texts(texts):
                return _NOTHING
            length = end + len(after) - start
        else:
            texts, length = self._texts(block[start : end + len(after)])
        if not texts:
            return _NOTHING
        if self.growing is not None:
            self.growing.extend(texts)
        if self._same:
            return block[start : start + length], length, len(texts)
        before, after = self._sent_before, self._sent_after
        return before + (after + before).join(texts) + after, length, len(texts)

    def carry_one(self, data: bytes, start: int, stop: int) -> bytes | None:
        """Rewrite the one event at a place of some data; None if it does not fit, or may not.

        It says no also to what `carry` would take, and changes nothing.
        """
        before, after = self._before, self._after
        begin, end = start + len(before), stop - len(after)
        if begin > end or not data.startswith(before, start) or not data.startswith(after, end):
            return None
        text = data[begin:end]
        if b"\n" in text or b"\r" in text or self.growing is not None:
            return None
        if (b'"' in text or b"\\" in text) and not _are_texts([text]):
            return None
        return data[start:stop] if self._same else self._sent_before + text + self._sent_after

    def _texts(self, block: bytes) -> tuple[list[bytes], int]:
        """The texts of the events at a block's start that fit, and the bytes of these events.

        An event that fits is one line and a blank one. So the texts are cut out of every second
        line as if all fitted, and what is made of them is compared with what is there.
        """
        with io.BytesIO(block) as source:
            lines = source.readlines()  # finds line ends by memchr
        cut = itemgetter(slice(len(self._before), 1 - len(self._after)))
        texts = [*map(cut, lines[::2])]
        length = self._fitting(block, texts)
        if length:
            return texts, length

        def is_beyond(count: int) -> bool:
            return not self._fitting(block, texts[:count])

        del texts[bisect_left(range(1, len(texts)), True, key=is_beyond) :]
        return texts, self._fitting(block, texts)

    def _fitting(self, block: bytes, texts: list[bytes]) -> int:
        """How many bytes events with these texts have, if a block begins with them; else 0."""
        inner = self._seam.join(texts)
        start = len(self._before)
        end = start + len(inner)
        fits = (
            block.startswith(inner, start)
            and block.startswith(self._after, end)
            and block.startswith(self._before)
            and _are_texts(texts)
        )
        return end + len(self._after) if fits else 0


class TextReader:
    """Reads the texts of chunks that differ from the last parsed one only in their text."""

    def __init__(self) -> None:
        self._template: Template | None = None
        self._lesson: bytes | None = None

    def learn(self, event: bytes | None) -> None:
        """Learn from an event with its blank line; with None, forget the last one."""
        self._template, self._lesson = None, event

    def texts(self, events: bytes, start: int = 0) -> tuple[list[bytes], int]:
        """The texts of the events from a place on that fit, as JSON without quotes, and how many
        bytes these events have."""
        if (lesson := self._lesson) is not None:
            if not _ends_alike(events, events.find(b"\n\n", start) + 2, lesson):
                return [], 0
            self._lesson, self._template = None, Template.learn(lesson, lesson)
        found: list[bytes] = []
        if (template := self._template) is None:
            return found, 0
        template.growing = found
        return found, template.carry(events, start)[1]


def _ends_alike(data: bytes, stop: int, event: bytes) -> bool:
    """Whether the event that stops at a place ends as another one. A finish does not end as the
    only text in front of it, of which then no template need be made."""
    tail = event[-_TAIL:]
    return data.startswith(tail, max(0, stop - len(tail)))


def _around_text(event: bytes) -> tuple[bytes, bytes] | None:
    """The bytes before and after the text of an event; None if it has none or several."""
    found = _TEXT.search(event)
    if found is None or _TEXT.search(event, found.end()) is not None:
        return None
    return event[: found.start(1)], event[found.end(1) :]


def _are_texts(texts: list[bytes]) -> bool:
    """Whether each is the inside of one JSON string: no line end, no unescaped quote."""
    if len(texts) == 1 and b'"' not in texts[0] and b"\\" not in texts[0]:
        return b"\n" not in texts[0]
    closed = b'"'.join(texts) + b'"'
    if b"\\" in closed:
        closed = closed.replace(rb"\\", b"").replace(rb"\"", b"")
    return closed.count(b'"') == len(texts) and b"\n" not in closed


class Carrier:
    """Forwards chunks by the template of the last chunk that was examined.

    Attributes:
        is_ready: there may be a template.
    """

    __slots__ = ("_in_a_row", "_lesson", "_lessons", "_template", "is_ready")

    def __init__(self) -> None:
        self._template: Template | None = None
        #: What a template is to be made of.
        self._lesson: tuple[bytes, bytes, Growing | None] | None = None
        self._lessons, self._in_a_row = _LESSONS, 0
        self.is_ready = False

    def carry(self, events: bytes, start: int = 0) -> tuple[bytes, int, int]:
        """Rewrite the events from a place on that fit the template.

        Returns the bytes for the client, how many bytes they replace, and how many events: 0 if the
        first one does not fit.
        """
        if self._lesson is not None:
            self._understand(events, events.find(b"\n\n", start) + 2)
        if self._template is None:
            return _NOTHING
        carried = self._template.carry(events, start)
        self._in_a_row += carried[2]
        return carried

    def carry_one(self, data: bytes, start: int, stop: int) -> bytes | None:
        """Rewrite the one event at a place of some data, if it fits; None: `carry` may know."""
        if self._lesson is not None:
            self._understand(data, stop)
        if self._template is None:
            return None
        sent = self._template.carry_one(data, start, stop)
        if sent is not None:
            self._in_a_row += 1
        return sent

    def learn(
        self, event: bytes, sent: bytes, growing: Growing | None = None, *, alike: bool = True
    ) -> None:
        """Learn from an event whose like are sent the same way.

        Args:
            growing: gets the texts if they are a tool call's arguments.
            alike: it was sent as it came. If such chunks keep alternating, nothing more is learned.
        """
        self.forget()
        if alike and growing is None:
            self._lessons = _LESSONS if self._in_a_row > 1 else self._lessons - 1
            self._in_a_row = 0
            if self._lessons <= 0:
                return
        self._lesson, self.is_ready = (event, sent, growing), True

    def forget(self) -> None:
        """Drop the template: the next chunk may need to be normalized in another way."""
        self._template, self._lesson, self.is_ready = None, None, False

    def _understand(self, data: bytes, stop: int) -> None:
        """Make the template, if the event that stops at a place ends as the one it is made of."""
        assert self._lesson is not None, "asked for without a look"
        event, sent, growing = self._lesson
        if not _ends_alike(data, stop, event):
            return
        self._lesson, self._template = None, Template.learn(event, sent)
        if self._template is None:
            self.is_ready = False
        else:
            self._template.growing = growing
