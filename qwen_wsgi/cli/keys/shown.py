"""Client keys as text for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from qwen_wsgi import text
from qwen_wsgi.access.client_key import ClientKey
from qwen_wsgi.console import keys as words

_NO_KEYS: Final = (
    "There is no client key. Make one with `qwen-proxy keys add NAME`; without one only this "
    "machine is served, unless QWEN_PROXY_API_KEYS has some.\n"
)
_HEAD: Final = ("NAME", "STATE", "LAST USED", "LIMITS")


def table(keys: Sequence[ClientKey], *, now: float) -> str:
    """All keys, one a line; those that are valid first."""
    if not keys:
        return _NO_KEYS
    ordered = sorted(keys, key=lambda key: (key.revoked_at is not None, key.name.lower()))
    rows = (
        (key.name, words.state(key, now), words.last_use(key, now), _limits(key)) for key in ordered
    )
    return text.table([_HEAD, *rows]) + "\n"


def details(key: ClientKey, *, now: float) -> str:
    """One key with everything that is known of it."""
    rows = [
        ("id", key.id),
        ("state", words.state(key, now)),
        ("made", f"{words.span(now - key.created_at)} ago"),
        ("last used", words.last_use(key, now)),
        *_all_limits(key),
        ("may", ", ".join(words.rights(key))),
        ("note", key.note),
    ]
    lines = [key.name, *(f"    {name:<16} {value}" for name, value in rows if value)]
    return "\n".join(lines) + "\n"


def _limits(key: ClientKey) -> str:
    """The limits in a few words, for a line of the table."""
    found = [f"{name} {value}" for name, value in _all_limits(key)]
    return "; ".join([*found, *words.rights(key)]) or "none"


def _all_limits(key: ClientKey) -> Iterator[tuple[str, str]]:
    for name, number in (
        ("rpm", key.rpm),
        ("tpm", key.tpm),
        ("tokens per day", key.tokens_per_day),
        ("money per month", key.money_per_month),
        ("concurrency", key.concurrency),
    ):
        if number is not None:
            yield name, f"{number:g}" if isinstance(number, float) else str(number)
    yield from words.bounds(key)
