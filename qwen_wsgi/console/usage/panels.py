"""What was used, as charts and tables: from the ledger's sums to what a page shows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from qwen_wsgi.console.usage import charts, table
from qwen_wsgi.console.usage.charts import Column
from qwen_wsgi.console.usage.table import Table, Value
from qwen_wsgi.state.database.calls import FIRST_BYTE_CLASSES_MS, ErrorCount, FirstBytes

Row = Mapping[str, Any]

#: Names with a bar of their own; the rest is one bar.
_MOST_BARS: Final = 12
#: Kinds of errors with a colour of their own, and with a column of their own.
_MOST_CAUSES: Final = 5
_MOST_COLUMNS: Final = 12
OTHERS: Final = "others"


class Panel(NamedTuple):
    """One chart with its table.

    Attributes:
        kind: what it is of, as addresses name it: `calls`, `tokens`, `errors`, `first-byte`, and
            `money-usd` of a currency, or `money` where no call had a price.
        legend: what the colours are, in their order.
        chart: SVG, which is safe to be shown as it is.
        note: what the numbers leave out; "" if nothing.
    """

    kind: str
    title: str
    legend: Sequence[str]
    chart: str
    table: Table
    note: str = ""


class Groups(NamedTuple):
    """What numbers are grouped by.

    Attributes:
        by: `day`, `hour`, `client`, `model` or `account`.
        keys: in the order in which they are shown.
    """

    by: str
    keys: Sequence[str]

    @property
    def in_time(self) -> bool:
        return self.by in ("day", "hour")


def panels(
    groups: Groups, rows: Iterable[Row], errors: Iterable[ErrorCount], first: Iterable[FirstBytes]
) -> list[Panel]:
    """All panels of a page.

    Args:
        rows: of `accounting.usage.report`.
        errors, first: with the keys of `rows`.
    """
    found = list(rows)
    return [
        _calls(groups, found),
        _tokens(groups, found),
        *_money(groups, found),
        _errors(groups, list(errors)),
        _first_byte(groups, list(first)),
    ]


# --- calls ---------------------------------------------------------------------------------------


def _calls(groups: Groups, rows: Sequence[Row]) -> Panel:
    names = ("calls", "failed", "refused", "cache_hits")
    sums = _sums(groups, rows, names)
    columns = [
        (key, (calls - failed, failed, refused)) for key, (calls, failed, refused, _) in sums
    ]
    return Panel(
        "calls",
        "Calls",
        ("answered", "failed", "refused"),
        _chart(groups, columns, "Calls"),
        _table(groups, ("calls", "failed", "refused by the proxy", "from the cache"), sums),
        "Calls that were refused are not among the calls; those that failed are.",
    )


def _tokens(groups: Groups, rows: Sequence[Row]) -> Panel:
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "unknown_usage")
    sums = _sums(groups, rows, names)
    columns = [
        (key, (max(0, given - cached), min(cached, given), output))
        for key, (given, cached, output, _, _) in sums
    ]
    unknown = sum(values[-1] for _, values in sums)
    note = "Cached tokens are among the input, reasoning among the output."
    if unknown:
        note += f" Of {unknown:,} calls it is unknown what they used."
    headings = ("input", "of it cached", "output", "of it reasoning", "calls of unknown use")
    return Panel(
        "tokens",
        "Tokens",
        ("input", "input from a cache", "output"),
        _chart(groups, columns, "Tokens"),
        _table(groups, headings, sums),
        note,
    )


def _money(groups: Groups, rows: Sequence[Row]) -> list[Panel]:
    """One panel for each currency: they cannot be added."""
    currencies = sorted({row["currency"] for row in rows if row["currency"]})
    unpriced = Counter[str]()
    for row in rows:
        if row["money"] is None:
            unpriced[row["key"]] += _calls_of_unknown_price(row)
    unpriced = +unpriced
    note = ""
    if unpriced:
        note = (
            f"The price of {unpriced.total():,} calls is unknown; they are not in the chart. "
            "QWEN_PROXY_PRICES adds prices."
        )
    if not currencies:
        cells: list[Sequence[Value]] = [
            (key, None if unpriced[key] else 0, unpriced[key]) for key in groups.keys
        ]
        shown = Table((groups.by, "money", "calls of unknown price"), cells)
        # Bars of 0 would say that nothing was paid.
        return [Panel("money", "Money", (), "", shown, note or "No call had a price.")]
    return [_of_currency(groups, rows, each, unpriced, note) for each in currencies]


def _of_currency(
    groups: Groups, rows: Sequence[Row], currency: str, unpriced: Mapping[str, int], note: str
) -> Panel:
    own = [row for row in rows if row["currency"] == currency]
    paid = dict(_sums(groups, own, ("money", "saved_by_cache")))
    priced = {row["key"] for row in own}
    cells: list[Sequence[Value]] = []
    for key in groups.keys:
        money, saved = paid[key]
        unknown = unpriced.get(key, 0)
        is_known = key in priced or not unknown
        cells.append((key, *((money, saved) if is_known else (None, None)), unknown))
    headings = (groups.by, f"money, {currency}", "saved by caches", "calls of unknown price")
    title = f"Money, {currency}"
    columns = [(key, (max(0.0, money),)) for key, (money, _) in paid.items()]
    chart = _chart(groups, columns, title, unit=currency)
    note = f"By list prices. {note}".strip()
    return Panel(f"money-{currency.lower()}", title, (), chart, Table(headings, cells), note)


def _calls_of_unknown_price(row: Row) -> int:
    """Those that used something, as far as is known: of a failed call nothing is paid."""
    return max(int(row["calls"] - row["failed"] - row["cache_hits"]), int(row["unknown_usage"]))


# --- errors and times ----------------------------------------------------------------------------


def _errors(groups: Groups, errors: Sequence[ErrorCount]) -> Panel:
    by_cause, of_key = Counter[str](), Counter[tuple[str, str]]()
    for each in errors:
        cause = each.error or each.outcome
        by_cause[cause] += each.calls
        of_key[each.key, cause] += each.calls
    causes = [cause for cause, _ in by_cause.most_common()]
    drawn, listed = _split(causes, _MOST_CAUSES), _split(causes, _MOST_COLUMNS)

    def counts(key: str, columns: Sequence[Sequence[str]]) -> tuple[int, ...]:
        return tuple(sum(of_key[key, cause] for cause in column) for column in columns)

    columns = [(key, counts(key, drawn)) for key in groups.keys]
    sums = [(key, counts(key, listed)) for key in groups.keys]
    note = "Calls that were refused or failed, by the code that the client was told."
    return Panel(
        "errors",
        "Errors",
        [charts.readable(_name_of(each)) for each in drawn],
        _chart(groups, columns, "Errors"),
        _table(groups, [_name_of(each) for each in listed], sums),
        note if causes else "No call was refused, and none failed.",
    )


def _split(causes: Sequence[str], most: int) -> list[Sequence[str]]:
    """Each cause alone, and the rarest together."""
    if len(causes) <= most:
        return [(cause,) for cause in causes]
    return [*((cause,) for cause in causes[: most - 1]), causes[most - 1 :]]


def _name_of(causes: Sequence[str]) -> str:
    return causes[0] if len(causes) == 1 else OTHERS


def _first_byte(groups: Groups, first: Sequence[FirstBytes]) -> Panel:
    known = {each.key: each for each in first}
    zeros = (0,) * (len(FIRST_BYTE_CLASSES_MS) + 1)
    columns = [(key, known[key].classes if key in known else zeros) for key in groups.keys]
    cells: list[Sequence[Value]] = []
    for key in groups.keys:
        found = known.get(key)
        if found is None or not found.calls:
            cells.append((key, 0, "–", "–", *zeros))
        else:
            mean_s, most_s = found.sum_ms / found.calls / 1000, found.most_ms / 1000
            cells.append((key, found.calls, round(mean_s, 3), round(most_s, 3), *found.classes))
    legend = [f"within {limit / 1000:g} s" for limit in FIRST_BYTE_CLASSES_MS]
    legend.append(f"over {FIRST_BYTE_CLASSES_MS[-1] / 1000:g} s")
    headings = (groups.by, "calls", "mean, s", "longest, s", *legend)
    return Panel(
        "first-byte",
        "Time to the first byte",
        legend,
        _chart(groups, columns, "Calls by their time to the first byte"),
        Table(headings, cells),
        "From a call's arrival to the first event of its upstream, with queues and further "
        "attempts. Calls without an answer have none.",
    )


# --- what they share -----------------------------------------------------------------------------


def _sums(
    groups: Groups, rows: Iterable[Row], names: Sequence[str]
) -> list[tuple[str, tuple[Any, ...]]]:
    """The sums of some numbers, of each group: a name has a row for each currency."""
    sums: dict[str, list[Any]] = {key: [0] * len(names) for key in groups.keys}
    for row in rows:
        if (known := sums.get(row["key"])) is not None:
            known[:] = [value + (row[name] or 0) for value, name in zip(known, names, strict=True)]
    return [(key, tuple(values)) for key, values in sums.items()]


def _chart(
    groups: Groups,
    columns: Sequence[tuple[str, Sequence[float]]],
    title: str,
    *,
    unit: str = "",
) -> str:
    title = f"{title} by {groups.by}"
    if groups.in_time:
        drawn = [Column(label_of(key), parts) for key, parts in columns]
        return charts.vertical(drawn, title=title, unit=unit, whole=not title.startswith("Money"))
    by_size = sorted(columns, key=lambda each: -sum(each[1]))
    bars = [Column(key or "–", parts) for key, parts in by_size[:_MOST_BARS]]
    if rest := [parts for _, parts in by_size[_MOST_BARS:]]:
        bars.append(Column(OTHERS, [sum(each) for each in zip(*rest, strict=True)]))
    values = [f"{_exact(bar.total)} {unit}".rstrip() for bar in bars]
    return charts.horizontal(bars, values, title=title)


def _exact(value: float) -> str:
    return table.shown(value if isinstance(value, int) else round(value, 6))


def _table(
    groups: Groups, headings: Sequence[str], sums: Sequence[tuple[str, Sequence[Value]]]
) -> Table:
    return Table((groups.by, *headings), [(key, *values) for key, values in sums])


def label_of(key: str) -> str:
    """A day or an hour in short: `Nov 29`, `14:00`."""
    at = datetime.fromisoformat(key)
    return f"{at:%H:%M}" if "T" in key else f"{at:%b} {at.day}"


def find(found: Sequence[Panel], kind: str) -> Panel | None:
    """The panel of a kind."""
    return next((panel for panel in found if panel.kind == kind), None)
