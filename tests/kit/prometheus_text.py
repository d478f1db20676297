"""Reads Prometheus' text format 0.0.4 and OpenMetrics 1.0, and complains of what is wrong in it.

Written from the formats' descriptions, and independent of the code that renders them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Labels = frozenset[tuple[str, str]]


@dataclass
class Exposition:
    """Metrics as they were told.

    Attributes:
        types: of each metric, by its name.
        samples: values by the sample's name and its labels.
    """

    types: dict[str, str] = field(default_factory=dict)
    helps: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """The only sample with exactly these labels. Raises KeyError."""
        return self.samples[name, frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with at least these labels."""
        wanted = set(labels.items())
        return sum(
            value for (each, has), value in self.samples.items() if each == name and wanted <= has
        )

    def values_of(self, label: str) -> set[str]:
        """All values of a label."""
        return {value for _, labels in self.samples for name, value in labels if name == label}


def parse(text: str, *, openmetrics: bool = False) -> Exposition:
    """Read a text. An AssertionError says what is wrong with it."""
    found = Exposition()
    assert text.endswith("# EOF\n" if openmetrics else "\n")
    lines = text.splitlines()
    if openmetrics:
        assert lines.pop() == "# EOF"
    current = ""
    for line in lines:
        assert line, "an empty line"
        if line.startswith("# HELP "):
            current, _, help = line.removeprefix("# HELP ").partition(" ")
            assert current not in found.helps, f"{current} is told twice"
            assert help
            found.helps[current] = help
        elif line.startswith("# TYPE "):
            name, _, kind = line.removeprefix("# TYPE ").partition(" ")
            assert name == current, "TYPE without its HELP"
            assert kind in ("counter", "gauge", "histogram")
            assert openmetrics or kind != "counter" or name.endswith("_total"), name
            found.types[name] = kind
        else:
            _sample(found, current, line, openmetrics=openmetrics)
    _check_histograms(found)
    return found


def _sample(found: Exposition, current: str, line: str, *, openmetrics: bool) -> None:
    matched = _SAMPLE.fullmatch(line)
    assert matched, line
    name, written, value = matched[1], matched[2] or "", matched[3]
    kind = found.types[current]
    if kind == "histogram":
        assert name in (f"{current}_bucket", f"{current}_sum", f"{current}_count"), line
    else:
        assert name == current + "_total" * (openmetrics and kind == "counter"), line
    labels = _LABEL.findall(written)
    assert "".join(f'{label}="{text}",' for label, text in labels).rstrip(",") == written, line
    key = frozenset(
        (label, re.sub(r"\\.", lambda escape: _ESCAPES[escape[0]], text)) for label, text in labels
    )
    assert len(key) == len(labels), line
    assert (name, key) not in found.samples, f"told twice: {line}"
    found.samples[name, key] = float(value)
    assert kind == "gauge" or float(value) >= 0, line


def _check_histograms(found: Exposition) -> None:
    for name, kind in found.types.items():
        if kind != "histogram":
            continue
        series: dict[Labels, list[tuple[float, float]]] = {}
        for (sample, labels), value in found.samples.items():
            if sample == f"{name}_bucket":
                bounds = [text for label, text in labels if label == "le"]
                rest = frozenset(each for each in labels if each[0] != "le")
                series.setdefault(rest, []).append((float(bounds[0]), value))
        for rest, buckets in series.items():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts), f"{name} is not cumulative"
            assert max(buckets)[0] == float("inf")
            assert counts[-1] == found.samples[f"{name}_count", rest]
            assert (f"{name}_sum", rest) in found.samples
