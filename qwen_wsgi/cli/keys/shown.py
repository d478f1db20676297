"""Client keys as text for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from qwen_wsgi import text
from qwen_wsgi.access.client_key import ClientKey
from qwen_wsgi.text import duration

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
    rows = ((key.name, state(key, now), _last_use(key, now), _limits(key)) for key in ordered)
    return text.table([_HEAD, *rows]) + "\n"


def details(key: ClientKey, *, now: float) -> str:
    """One key with everything that is known of it."""
    rows = [
        ("id", key.id),
        ("state", state(key, now)),
        ("made", f"{span(now - key.created_at)} ago"),
        ("last used", _last_use(key, now)),
        *_all_limits(key),
        ("may", ", ".join(_rights(key))),
        ("note", key.note),
    ]
    lines = [key.name, *(f"    {name:<16} {value}" for name, value in rows if value)]
    return "\n".join(lines) + "\n"


def state(key: ClientKey, now: float) -> str:
    """Whether it works, in words."""
    if key.revoked_at is not None:
        return f"revoked {span(now - key.revoked_at)} ago"
    if key.expires_at is None:
        return "valid"
    if key.expired(now):
        return f"expired {span(now - key.expires_at)} ago"
    return f"valid for {span(key.expires_at - now)}"


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    return duration(max(0.0, seconds))


def _last_use(key: ClientKey, now: float) -> str:
    return "never" if key.last_used_at is None else f"{span(now - key.last_used_at)} ago"


def _limits(key: ClientKey) -> str:
    """The limits in a few words, for a line of the table."""
    found = [f"{name} {value}" for name, value in _all_limits(key)]
    return "; ".join([*found, *_rights(key)]) or "none"


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
    for name, words in (
        ("models", key.models),
        ("accounts", key.accounts),
        ("networks", key.cidr),
        ("tools", key.tools),
    ):
        if words:
            yield name, ", ".join(words)
    if key.cache is not None:
        yield "response cache", span(key.cache) if key.cache else "off"


def _rights(key: ClientKey) -> Iterator[str]:
    if key.tools_always:
        yield "tools always"
    if key.admin:
        yield "admin"
    if key.metrics:
        yield "metrics"
