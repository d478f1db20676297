"""Draws bar charts as SVG, on the server. Pure.

A chart is one image with a name and a sentence for screen readers; its exact numbers are in the
table beneath it. Colours are classes of the stylesheet (`s0`, `s1`, …), because the page's policy
(CSP) allows no style of an element, and because the dark theme has others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

#: Of the drawing, in its own units; the page scales it to its width.
_WIDTH: Final = 720
_HEIGHT: Final = 200
#: Room for the numbers of the axis, and for the labels beneath.
_LEFT: Final = 52
_BOTTOM: Final = 22
_TOP: Final = 8
#: Of horizontal bars: of one with its name above it, and of the latter. On a small screen texts are
#: twice as large beside the bars.
_ROW: Final = 58
_TEXT: Final = 27
#: Characters of a name that have room.
_LONGEST: Final = 40
#: Characters of the sentence for screen readers.
_SPOKEN: Final = 600
NOTHING: Final = "Nothing in this time."
#: Labels beneath vertical bars: more would overlap.
_MOST_LABELS: Final = 8
#: Ends of axes: the four parts of each are numbers that people like, too.
_STEPS: Final = (1, 2, 4, 8, 20)
_LINES: Final = 4


class Column(NamedTuple):
    """One bar: its label, and its parts from the bottom (or the left) on. Never negative."""

    label: str
    parts: Sequence[float]

    @property
    def total(self) -> float:
        return sum(self.parts)


def vertical(columns: Sequence[Column], *, title: str, unit: str = "", whole: bool = False) -> str:
    """Draw stacked bars side by side: what changes with time.

    Args:
        whole: of counts, of which there are no parts.
    """
    top = nice_top(max((each.total for each in columns), default=0.0))
    top = max(top, _LINES) if whole else top
    height, width = _HEIGHT - _TOP - _BOTTOM, _WIDTH - _LEFT
    step = width / max(1, len(columns))
    bar = max(1.0, min(step * 0.8, 48.0))
    paths = _Paths(max((len(each.parts) for each in columns), default=0))
    for place, column in enumerate(columns):
        x, below = _LEFT + place * step + (step - bar) / 2, 0.0
        for series, part in enumerate(column.parts):
            begin, below = below, below + part
            y = _TOP + height * (1 - below / top)
            paths.add(series, x, y, bar, height * (below - begin) / top)
    every = math.ceil(len(columns) / _MOST_LABELS) or 1
    labels = "".join(
        _text(_LEFT + (place + 0.5) * step, _HEIGHT - 6, column.label, "middle", place // every)
        for place, column in enumerate(columns)
        if place % every == 0
    )
    lines = "".join(_line(top, height, each, unit) for each in range(_LINES + 1))
    return _drawing(
        title, sentence(columns, unit), _HEIGHT, lines + "".join(paths.drawn()) + labels
    )


def horizontal(columns: Sequence[Column], values: Sequence[str], *, title: str) -> str:
    """Draw stacked bars one beneath another: what names have, with the value of each."""
    top = max((each.total for each in columns), default=0.0) or 1.0
    paths = _Paths(max((len(each.parts) for each in columns), default=0))
    texts = []
    for place, (column, value) in enumerate(zip(columns, values, strict=True)):
        y, x = place * _ROW, 0.0
        for series, part in enumerate(column.parts):
            paths.add(series, x, y + _TEXT, _WIDTH * part / top, _ROW - _TEXT - _TOP)
            x += _WIDTH * part / top
        texts.append(_text(0, y + _TEXT - 7, shortened(column.label), "start"))
        texts.append(_text(_WIDTH, y + _TEXT - 7, value, "end"))
    height = _ROW * max(1, len(columns))
    spoken = "; ".join(
        f"{each.label}: {value}" for each, value in zip(columns, values, strict=True)
    )
    drawn = "".join(paths.drawn()) + "".join(texts)
    return _drawing(title, spoken[:_SPOKEN] or NOTHING, height, drawn)


def nice_top(largest: float) -> float:
    """The end of an axis: the next number that people like, never below the largest value."""
    if not largest > 0 or not math.isfinite(largest):
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(largest))
    for step in _STEPS:
        if step * power >= largest:
            return step * power
    return largest


def short_number(value: float) -> str:
    """A number for an axis: `1.5k`, `20M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def shortened(text: str, most: int = _LONGEST) -> str:
    """A name that has room; its middle is left out, because ends tell models apart."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[: most - 1 - half]}…{text[-half:]}"


def sentence(columns: Sequence[Column], unit: str) -> str:
    """What a chart shows, for those who do not see it."""
    if not columns or not any(each.total for each in columns):
        return NOTHING
    most = max(columns, key=lambda each: each.total)
    total = sum(each.total for each in columns)
    unit = f" {unit}" if unit else ""
    return (
        f"{len(columns)} bars from {columns[0].label} to {columns[-1].label}; altogether "
        f"{short_number(total)}{unit}, most at {most.label} with {short_number(most.total)}{unit}."
    )


class _Paths:
    """The bars of each series as one path: a third of what single rectangles take."""

    def __init__(self, series: int) -> None:
        self._drawn: list[list[str]] = [[] for _ in range(series)]

    def add(self, series: int, x: float, y: float, width: float, height: float) -> None:
        if width > 0 and height > 0:
            self._drawn[series].append(
                f"M{_number(x)} {_number(y)}h{_number(width)}v{_number(height)}h-{_number(width)}z"
            )

    def drawn(self) -> Iterator[str]:
        for series, bars in enumerate(self._drawn):
            if bars:
                yield f'<path class="s{series}" d="{"".join(bars)}"/>'


def _number(value: float) -> str:
    """A coordinate; of a bar that is too small to be seen as much as can be."""
    return f"{max(value, 0.0):.1f}".removesuffix(".0")


def _line(top: float, height: int, place: int, unit: str) -> str:
    y, value = _TOP + height * (1 - place / _LINES), top * place / _LINES
    label = short_number(value) + (f" {unit}" if unit and place == _LINES else "")
    drawn = f'<path class="grid" d="M{_LEFT} {_number(y)}H{_WIDTH}"/>'
    return drawn + _text(_LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str, place: int = 0) -> str:
    """A text; of the labels beneath bars every other one has no room on a small screen."""
    odd = ' class="odd"' if place % 2 else ""
    return (
        f'<text{odd} x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}">'
        f"{escape(readable(text))}</text>"
    )


def _drawing(title: str, spoken: str, height: int, inside: str) -> str:
    label = escape(readable(f"{title}. {spoken}"), quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">'
        f"{inside}</svg>"
    )


def readable(text: str) -> str:
    """A text whose signs can all stand in XML, and change no other text's direction."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
