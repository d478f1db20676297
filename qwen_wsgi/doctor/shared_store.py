"""Checks the Redis that several boxes share: whether it answers, how soon, and how it is set up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.state.redis.connection import PATIENCE_S, SharedStore, SharedStoreAway, Survey

TELL: Final = Teller("redis")

#: The oldest that is known to do what is asked of it.
_OLDEST: Final = 6
#: A question that takes longer is felt by each call of a client with limits. Seconds.
_SLOW_S: Final = 0.02


def check(store: SharedStore | None) -> Iterator[Finding]:
    """Look at the Redis, if one is set."""
    if store is None:
        return
    try:
        found = store.survey()
    except SharedStoreAway as error:
        yield TELL.fail(
            store.shown,
            f"it does not answer as it should: {error}",
            "Check QWEN_PROXY_REDIS_URL (host, port, password, database), whether Redis runs "
            "there, and whether this box may reach it. Until then this box counts limits by "
            "itself, and client keys cannot be changed.",
        )
        return
    yield from _findings(store.shown, found)


def _findings(where: str, found: Survey) -> Iterator[Finding]:
    major = found.version.partition(".")[0]
    if major.isdigit() and int(major) < _OLDEST:
        yield TELL.fail(
            where,
            f"version {found.version} is too old",
            f"Install Redis {_OLDEST} or newer, or Valkey.",
        )
    else:
        yield TELL.ok(where, f"it answers, version {found.version}")
    took = f"a question took {found.seconds * 1000:.1f} ms"
    if found.seconds > _SLOW_S:
        yield TELL.warn(
            "latency",
            f"{took}, which each call of a client with limits waits for",
            f"Have it nearer to this box. After {PATIENCE_S * 1000:.0f} ms it counts as away.",
        )
    else:
        yield TELL.ok("latency", took)
    if found.policy not in ("", "noeviction"):
        yield TELL.warn(
            "maxmemory-policy",
            f"it is {found.policy}: when its memory is full, Redis drops client keys, logins and "
            "counters without a word",
            "In redis.conf: maxmemory-policy noeviction. Have no other program's cache in it.",
        )
    if found.persistent is False:
        yield TELL.note(
            "persistence",
            "it writes nothing to the disk: after its restart the boxes put back what they know, "
            "and the window of a minute and the calls in flight begin anew",
            "In redis.conf: appendonly yes.",
        )
