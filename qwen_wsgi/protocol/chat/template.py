"""Forwards chunks that differ from the last one only in their text, without parsing each.

Nearly all chunks of a stream are equal except for one string: a piece of the answer, of the
thinking, or of a tool call's arguments. All of them are rewritten the same way, so the bytes before
and after the string are learned from one chunk, together with what the client got for it. Then a
read of many such events costs a search and a comparison instead of parsing.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

#: The members whose text may differ. Empty texts do not count: chunks have empty members, too.
_TEXT: Final = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments)": ?"((?:[^"\\]|\\.)+)"'
)

#: No template is learned from larger events, such as images or sound.
_LARGEST_BYTES: Final = 4096

#: Bytes on both sides of a border between events that are searched for. A longer needle is not
#: safer, because the whole is compared, but slower: bytes.split prepares the search for every hit.
_BORDER: Final = 24

#: After so many templates of which none fitted two chunks in a row, no more are learned.
_LESSONS: Final = 8

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
        *("_after", "_before", "_border", "_cut", "_same", "_seam"),
        *("_sent_after", "_sent_before", "growing"),
    )

    def __init__(self, event: tuple[bytes, bytes], sent: tuple[bytes, bytes]) -> None:
        """Take the bytes before and after the text, including the blank line."""
        self._before, self._after = event
        self._sent_before, self._sent_after = sent
        self._same = event == sent
        self._seam = self._after + self._before
        self._cut = min(_BORDER, len(self._after)), min(_BORDER, len(self._before))
        tail, head = self._cut
        self._border = self._after[-tail:] + self._before[:head]
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

    def carry(self, block: bytes) -> tuple[bytes, int, int]:
        """Rewrite the events at the start of a block that fit the template.

        Returns the bytes for the client, how many bytes of the block they replace, and how many
        events. Nothing if the first event does not fit, or one between those that do.
        """
        before, after = self._before, self._after
        if not block.startswith(before):
            return _NOTHING
        length = len(block)
        if not block.endswith(after):
            # The last events of a stream often come in one read with other chunks.
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
            self.growing.extend(texts)
        if not self._same:
            before, after = self._sent_before, self._sent_after
            block = before + (after + before).join(texts) + after
        return block, length, len(texts)

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

    def _texts(self, block: bytes) -> list[bytes]:
        """Split a block of several events into their texts, assuming that all fit."""
        tail, head = self._cut
        start, end = len(self._before) - head, tail - len(self._after) or None
        parts = block.split(self._border)
        parts[0] = parts[0][head:]
        parts[-1] = parts[-1][:-tail]
        return [part[start:end] for part in parts]


class TextReader:
    """Reads the texts of chunks that differ from the last parsed one only in their text."""

    def __init__(self) -> None:
        self._template: Template | None = None

    def learn(self, event: bytes | None) -> None:
        """Learn from an event with its blank line; with None, forget the last one."""
        self._template = None if event is None else Template.learn(event, event)

    def texts(self, events: bytes) -> list[bytes]:
        """The texts of some events as JSON, without quotes; empty if one event does not fit."""
        template = self._template
        if template is None:
            return []
        found: list[bytes] = []
        template.growing = found
        _, length, _ = template.carry(events)
        return found if length == len(events) else []


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
        fresh: the template was not tried since it was learned.
    """

    def __init__(self) -> None:
        self._template: Template | None = None
        self._from_parsed = False
        self._lessons, self._in_a_row = _LESSONS, 0
        self.fresh = False

    def carry(self, events: bytes) -> tuple[bytes, int]:
        """Rewrite the events at the start that fit the template.

        Returns the bytes for the client, and how many bytes they replace: 0 if none fits.
        """
        self.fresh = False
        if self._template is None:
            return b"", 0
        sent, length, count = self._template.carry(events)
        self._in_a_row += count
        return sent, length

    def carry_one(self, data: bytes, start: int, stop: int) -> bytes | None:
        """Rewrite the one event at a place of some data, if it fits; None: `carry` may know."""
        if self._template is None:
            return None
        sent = self._template.carry_one(data, start, stop)
        if sent is not None:
            self.fresh = False
            self._in_a_row += 1
        return sent

    def learn(self, event: bytes, sent: bytes) -> None:
        """Learn from an event that needed no parsing; give up if chunks keep alternating."""
        if self._from_parsed:
            self.forget()
        self._lessons = _LESSONS if self._in_a_row > 1 else self._lessons - 1
        self._in_a_row = 0
        if self._lessons > 0:
            self._take(event, sent)
        else:
            self.forget()

    def learn_normalized(self, event: bytes, sent: bytes, growing: Growing | None) -> None:
        """Learn from an event that was parsed and whose like are normalized the same way.

        Args:
            growing: gets the texts if they are a tool call's arguments.
        """
        self._take(event, sent)
        if self._template is not None:
            self._template.growing = growing
            self._from_parsed = True

    def forget(self) -> None:
        """Drop the template: the next chunk may need to be normalized in another way."""
        self._template, self._from_parsed, self.fresh = None, False, False

    def _take(self, event: bytes, sent: bytes) -> None:
        if (template := Template.learn(event, sent)) is not None:
            self._template, self.fresh = template, True
