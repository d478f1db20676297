"""Chunks that differ from the last one in their text only, carried without a look at each.

Nearly all chunks of a stream are alike but for one string: a piece of the answer, of the thinking,
or of a tool call's arguments. What is to be done with one is to be done with all of them, so what
stands before and after the string is learned from one chunk, together with what the client got in
its place. Then a read of many such events costs a search and a comparison, and no parser.
"""

from __future__ import annotations

import re
from typing import Final

#: The members whose text may differ. A text is not empty: chunks have empty ones beside theirs.
_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments)": ?"((?:[^"\\]|\\.)+)"'
)

#: Pictures and sounds are not worth learning from.
_LARGEST_BYTES: Final = 4096

#: Bytes to either side of a border between events that are searched for. A longer needle is no
#: safer, because the whole is compared, but dearer: bytes.split prepares the search for every hit.
_BORDER: Final = 24

#: Templates that are learned in a row before it is given up, if none fits two chunks in a row.
_LESSONS: Final = 8

_NOTHING: Final = (b"", 0, 0)


class Template:
    """Upstream's chunk and ours, each without its text.

    Attributes:
        growing: where the texts are noted that were carried, as they stood in JSON; or None.
    """

    __slots__ = (
        *("_after", "_before", "_border", "_cut", "_same", "_seam"),
        *("_told_after", "_told_before", "growing"),
    )

    def __init__(self, event: tuple[bytes, bytes], told: tuple[bytes, bytes]) -> None:
        """Take what stands before and after the text, the blank line included."""
        self._before, self._after = event
        self._told_before, self._told_after = told
        self._same = event == told
        self._seam = self._after + self._before
        self._cut = min(_BORDER, len(self._after)), min(_BORDER, len(self._before))
        tail, head = self._cut
        self._border = self._after[-tail:] + self._before[:head]
        self.growing: list[str | bytes] | None = None

    @staticmethod
    def learn(event: bytes, told: bytes) -> Template | None:
        """The template of an event (with its blank line) and of what the client got for it.

        None if they have not just one text each.
        """
        if len(event) > _LARGEST_BYTES or event.count(b"\n") != 2 or told.count(b"\n") != 2:
            return None
        theirs = _around_text(event)
        ours = theirs if told == event else _around_text(told)
        return Template(theirs, ours) if theirs is not None and ours is not None else None

    def carry(self, block: bytes) -> tuple[bytes, int, int]:
        """Carry what is alike at the start of a block of events.

        Returns what the client gets of it, how many bytes of the block that was, and how many
        events. Nothing if the block begins with another event, or one stands between those alike.
        """
        before, after = self._before, self._after
        if not block.startswith(before):
            return _NOTHING
        length = len(block)
        if not block.endswith(after):
            # The end of a stream often comes in one read with what was before it.
            length = block.rfind(after) + len(after)
            block = block[:length]
        if length < len(before) + len(after):
            return _NOTHING
        if block.find(b"\n", len(before)) == length - 2:
            texts = [block[len(before) : length - len(after)]]
        else:
            texts = self._texts(block)
            if before + self._seam.join(texts) + after != block:
                return _NOTHING
        if not _are_texts(texts):
            return _NOTHING
        if self.growing is not None:
            self.growing += texts
        if not self._same:
            before, after = self._told_before, self._told_after
            block = before + (after + before).join(texts) + after
        return block, length, len(texts)

    def _texts(self, block: bytes) -> list[bytes]:
        """What must be the texts of a block of several events, if it holds nothing else."""
        tail, head = self._cut
        start, end = len(self._before) - head, tail - len(self._after) or None
        parts = block.split(self._border)
        parts[0] = parts[0][head:]
        parts[-1] = parts[-1][:-tail]
        return [part[start:end] for part in parts]


class TextReader:
    """Reads the texts of chunks that are like the last one that was parsed, but for their text."""

    def __init__(self) -> None:
        self._template: Template | None = None

    def learn(self, event: bytes | None) -> None:
        """Take an event, with its blank line, whose like differ in their text; None for no such."""
        self._template = None if event is None else Template.learn(event, event)

    def texts(self, events: bytes) -> list[bytes]:
        """The texts of some events as they stand in JSON, without quotes; none if one is unlike."""
        template = self._template
        if template is None:
            return []
        found: list[str | bytes] = []
        template.growing = found
        _, length, _ = template.carry(events)
        return [each for each in found if isinstance(each, bytes)] if length == len(events) else []


def _around_text(event: bytes) -> tuple[bytes, bytes] | None:
    """What stands before and after the one text of an event; None if it has none, or more."""
    found = _TEXT.search(event)
    if found is None or _TEXT.search(event, found.end()) is not None:
        return None
    return event[: found.start(1)], event[found.end(1) :]


def _are_texts(texts: list[bytes]) -> bool:
    """Whether each is the inside of one JSON string: no line end, and no quote but escaped ones."""
    if len(texts) == 1 and b'"' not in texts[0] and b"\\" not in texts[0]:
        return b"\n" not in texts[0]
    closed = b'"'.join(texts) + b'"'
    if b"\\" in closed:
        closed = closed.replace(rb"\\", b"").replace(rb"\"", b"")
    return closed.count(b'"') == len(texts) and b"\n" not in closed


class Carrier:
    """Carries chunks by the template of the last one that was looked at.

    Attributes:
        fresh: the template has not been tried since it was learned.
    """

    def __init__(self) -> None:
        self._template: Template | None = None
        self._mending = False
        self._lessons, self._in_a_row = _LESSONS, 0
        self.fresh = False

    def carry(self, events: bytes) -> tuple[bytes, int]:
        """Carry the events at the start that the template fits.

        Returns what the client gets of them, and how many bytes they were: 0 if it does not fit.
        """
        self.fresh = False
        if self._template is None:
            return b"", 0
        told, length, count = self._template.carry(events)
        self._in_a_row += count
        return told, length

    def learn(self, event: bytes, told: bytes) -> None:
        """Learn from an event that needed no mending. Where chunks alternate, that is given up."""
        if self._mending:
            self.forget()
        self._lessons = _LESSONS if self._in_a_row > 1 else self._lessons - 1
        self._in_a_row = 0
        if self._lessons > 0:
            self._take(event, told)
        else:
            self.forget()

    def learn_mended(self, event: bytes, told: bytes, growing: list[str | bytes] | None) -> None:
        """Learn from an event that was parsed, whose like will be mended the same way.

        Args:
            growing: where the texts belong if they are a tool call's arguments.
        """
        self._take(event, told)
        if self._template is not None:
            self._template.growing = growing
            self._mending = True

    def forget(self) -> None:
        """What comes next may have to be mended in another way."""
        self._template, self._mending, self.fresh = None, False, False

    def _take(self, event: bytes, told: bytes) -> None:
        if (template := Template.learn(event, told)) is not None:
            self._template, self.fresh = template, True
