"""Renders metrics as text: Prometheus' format 0.0.4, and OpenMetrics 1.0. Pure.

The formats: prometheus.io/docs/instrumenting/exposition_formats; they differ in the names of
counters' heads and in the last line.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from qwen_wsgi.accounting.metric_families import FAMILIES, Family
from qwen_wsgi.accounting.metrics import Key, Row

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def content_type(accept: str) -> str:
    """The format for a caller's `Accept`: OpenMetrics where it is named."""
    return OPENMETRICS if "application/openmetrics-text" in accept else TEXT


def render(
    rows: Mapping[Key, Row], *, openmetrics: bool = False, families: Sequence[Family] = FAMILIES
) -> str:
    """Render the rows of these families; others are left out."""
    by_name: dict[str, list[tuple[Key, Row]]] = {}
    for key, row in rows.items():
        by_name.setdefault(key[0], []).append((key[1:], row))
    lines: list[str] = []
    for family in families:
        shown = family.name
        if openmetrics and family.kind == "counter":
            shown = shown.removesuffix("_total")
        lines.append(f"# HELP {shown} {family.help}")
        lines.append(f"# TYPE {shown} {family.kind}")
        for values, row in sorted(by_name.get(family.name, ())):
            lines.extend(_samples(family, values, row))
    lines.append("# EOF\n" if openmetrics else "")
    return "\n".join(lines)


def _samples(family: Family, values: Key, row: Row) -> Iterator[str]:
    labels = _labels(family.labels, values)
    if family.kind != "histogram":
        yield f"{family.name}{_braces(labels)} {_number(row[0])}"
        return
    before = labels + "," if labels else ""
    below: float = 0
    for bound, count in zip((*family.buckets, "+Inf"), row, strict=False):
        below += count
        yield f'{family.name}_bucket{{{before}le="{bound}"}} {_number(below)}'
    yield f"{family.name}_sum{_braces(labels)} {_number(row[-1])}"
    yield f"{family.name}_count{_braces(labels)} {_number(below)}"


@functools.lru_cache(maxsize=16_384)
def _labels(names: tuple[str, ...], values: Key) -> str:
    """Labels with their values; each combination is shown at every scrape."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))


def _braces(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escape(value: str) -> str:
    return value.encode(errors="replace").decode().translate(_ESCAPED)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 9))
