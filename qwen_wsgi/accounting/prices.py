"""What a call costs by a table of list prices, and what the cache has saved of it. Pure.

The table is data: `prices.json`, and a file of the operator's own, which wins. What is not known is
None, never zero.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.protocol.usage import Usage

#: The table that comes with the package.
FILE: Final = Path(__file__).with_name("prices.json")

_MAX_BYTES: Final = 1024 * 1024
#: Models whose prices are remembered: clients make up names.
_MAX_KNOWN: Final = 1024
_CURRENCY: Final = re.compile("[A-Z]{3}")
#: A price per million tokens is a price in millionths per token.
_MICRO: Final = 1_000_000


class Cost(NamedTuple):
    """What a call costs, in millionths of its currency.

    Attributes:
        saved_micro: without a cache it would have cost so much more; negative where writing to the
            cache has cost more than it has saved yet.
        currency: `USD`, `CNY`.
    """

    money_micro: int
    saved_micro: int
    currency: str


class Tier(NamedTuple):
    """The prices of a million tokens for prompts up to a length.

    Attributes:
        up_to: tokens of the prompt; None for any.
        input, output: None is unknown.
    """

    up_to: int | None
    input: float | None
    output: float | None


class Discounts(NamedTuple):
    """What other than plain input costs, as a part of the price of plain input.

    Attributes:
        implicit_hit: read from a cache that works by itself.
        explicit_hit, explicit_write: read from one that the client has marked, and written to it.
        half_price: a call at Batch Chat, as a part of its price without any cache.
    """

    implicit_hit: float = 1.0
    explicit_hit: float = 1.0
    explicit_write: float = 1.0
    half_price: float = 1.0


class Price(NamedTuple):
    """The prices of some models.

    Attributes:
        models: patterns of their names, as a shell has them.
        since: from when on, seconds since 1970; 0 for ever.
        tiers: by the length of the prompt, the shortest first.
        units: the price of one unit other than tokens, by its name: `pictures`, `seconds`.
    """

    models: tuple[str, ...]
    since: float
    currency: str
    tiers: tuple[Tier, ...]
    units: Mapping[str, float]
    discounts: Discounts

    def cost(
        self, usage: Usage | None, units: Sequence[tuple[str, float]], *, flex: bool
    ) -> Cost | None:
        """What a call costs; None if a count or a price is not known."""
        made: float | None = None
        for name, count in units:
            if name in self.units:
                made = (made or 0.0) + self.units[name] * count * _MICRO
        tokens = self._tokens(usage, flex)
        if tokens is None:
            return None if made is None else Cost(round(made), 0, self.currency)
        paid, full = tokens
        money = round(paid + (made or 0.0))
        saved = round(full + (made or 0.0)) - money
        # Its own constructor is a function of Python.
        return tuple.__new__(Cost, (money, saved, self.currency))

    def _tokens(self, usage: Usage | None, flex: bool) -> tuple[float, float] | None:
        """The price of the tokens, and the one without a cache; both in millionths."""
        if usage is None or (prompt := usage.prompt) is None:
            return None
        for tier in self.tiers:
            if tier.up_to is None or prompt <= tier.up_to:
                break
        else:
            return None
        price, completion = tier.input, usage.completion
        if price is None:
            return None
        full = prompt * price
        if completion:
            if tier.output is None:
                return None
            full += completion * tier.output
        elif completion is None and tier.output is not None:
            return None
        if flex:
            half = full * self.discounts.half_price
            return half, half
        if usage.cached or usage.cache_written:
            return full - price * self._spared(usage), full
        return full, full

    def _spared(self, usage: Usage) -> float:
        """The tokens of plain input that the cache has spared; negative if it cost some."""
        cached, stored = usage.cached or 0, usage.cache_written or 0
        rules = self.discounts
        if usage.explicit_cache or stored:
            return cached * (1 - rules.explicit_hit) - stored * (rules.explicit_write - 1)
        return cached * (1 - rules.implicit_hit)


class Prices:
    """The prices of all models.

    Args:
        prices: the first one that fits a model and a time counts.
    """

    def __init__(self, prices: Sequence[Price]) -> None:
        self._prices = prices
        self._known: dict[str, list[Price]] = {}

    def cost(self, call: CallRecord, at: float) -> Cost | None:
        """What a call costs; None if that is not known.

        Args:
            at: when, seconds since 1970.
        """
        usage, units, model = call.usage, call.units, call.upstream_model or call.model
        if usage is None and not units:
            return None
        found = self._known.get(model)
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = self._known[model] = [
                price
                for price in self._prices
                if any(fnmatchcase(model, pattern) for pattern in price.models)
            ]
        for price in found:
            if price.since <= at:
                return price.cost(usage, units, flex=call.half_price)
        return None


def load(file: Path | None = None) -> Prices:
    """The package's table, and before it the operator's own.

    Raises:
        ValueError: the operator's file cannot be used; the text says why.
    """
    own = read(FILE.read_text())
    if file is None:
        return Prices(own)
    try:
        with file.open("rb") as source:
            text = source.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from error
    if len(text) > _MAX_BYTES:
        raise ValueError("it has more than a megabyte")
    return Prices([*read(text.decode()), *own])


def read(text: str) -> list[Price]:
    """The prices of a table, those that began later first.

    Raises:
        ValueError: it is none; the text says where.
    """
    try:
        table = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    entries = _member(table, "the table", "prices", list, [])
    cache = _member(table, "the table", "cache", dict, {})
    half = _member(table, "the table", "half_price", dict, {})
    discounts = Discounts(
        _part(cache, "cache", "implicit_hit"),
        _part(cache, "cache", "explicit_hit"),
        _part(cache, "cache", "explicit_write"),
        _part(half, "half_price", "factor"),
    )
    found = [_price(entry, f"prices[{at}]", discounts) for at, entry in enumerate(entries)]
    return sorted(found, key=lambda price: -price.since)


def _price(entry: Any, where: str, discounts: Discounts) -> Price:
    models = _member(entry, where, "models", list, [])
    if not models or not all(isinstance(each, str) and each for each in models):
        raise ValueError(f"{where}.models must be a list of names")
    currency = _member(entry, where, "currency", str, "")
    if not _CURRENCY.fullmatch(currency):
        raise ValueError(f"{where}.currency must be three capital letters, such as USD")
    units = _member(entry, where, "units", dict, {})
    counts = {name: _number(units, f"{where}.units", name) for name in units}
    return Price(
        tuple(models),
        _since(_member(entry, where, "since", str, ""), where),
        currency,
        _tiers(entry, where),
        {name: count for name, count in counts.items() if count is not None},
        discounts,
    )


def _tiers(entry: Any, where: str) -> tuple[Tier, ...]:
    if "tiers" not in entry:
        return (Tier(None, _number(entry, where, "input"), _number(entry, where, "output")),)
    tiers = []
    for at, tier in enumerate(_member(entry, where, "tiers", list, [])):
        place = f"{where}.tiers[{at}]"
        up_to = _number(tier, place, "up_to")
        prices = (_number(tier, place, name) for name in ("input", "output"))
        tiers.append(Tier(None if up_to is None else int(up_to), *prices))
    return tuple(sorted(tiers, key=lambda tier: (tier.up_to is None, tier.up_to or 0)))


def _since(text: str, where: str) -> float:
    if not text:
        return 0.0
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{where}.since must be a date, such as 2026-11-28") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _member(holder: Any, where: str, name: str, kind: type, default: Any) -> Any:
    if not isinstance(holder, dict):
        raise ValueError(f"{where} must be an object")
    found = holder.get(name, default)
    if not isinstance(found, kind):
        words: dict[type, str] = {list: "a list", dict: "an object", str: "a text"}
        raise ValueError(f"{where}.{name} must be {words[kind]}")
    return found


def _part(holder: Any, where: str, name: str) -> float:
    """A part of a price; the whole of it where the table says nothing."""
    found = _number(holder, where, name)
    return 1.0 if found is None else found


def _number(holder: Any, where: str, name: str) -> float | None:
    """A number from 0 on, or None for null."""
    if not isinstance(holder, dict):
        raise ValueError(f"{where} must be an object")
    found = holder.get(name)
    if found is None:
        return None
    if type(found) not in (int, float) or not 0 <= found < 1e12:
        raise ValueError(f"{where}.{name} must be a number from 0 on, or null")
    return float(found)
