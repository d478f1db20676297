"""What this box shares with others, by the settings: for the server, and for commands, which load
little else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.credentials.shared.sharing import Sharing
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.sqlite import Apart, Database
from qwen_wsgi.state.redis.client_keys import SharedClientKeys
from qwen_wsgi.state.redis.connection import SharedStore, box_id
from qwen_wsgi.state.redis.live_calls import LiveCalls
from qwen_wsgi.state.redis.totals import UsageTotals
from qwen_wsgi.state.redis.values import Packer, Sealing

log = logging.getLogger(__name__)


def shared_store_of(
    settings: Settings,
    clock: Clock,
    state_dir: Path | None,
    *,
    within: Callable[[float], AbstractContextManager[object]] | None = None,
) -> SharedStore | None:
    """The Redis that several boxes share; None without one.

    Args:
        within: as that of `SharedStore`.
    """
    if not settings.redis_url:
        return None
    return SharedStore(settings.redis_url, box_id(state_dir), clock, within=within)


def usage_totals_of(settings: Settings, store: SharedStore) -> UsageTotals:
    """What all boxes have used."""
    return UsageTotals(store, kept_s=settings.ledger_days * 86_400.0)


def sharing_of(
    settings: Settings,
    clock: Clock,
    store: SharedStore | None,
    state_dir: Path | None,
    *,
    sleep: Callable[[float], None] = sleep,
) -> Sharing | None:
    """Shares the logins with other boxes; None without a Redis, or without a key to seal them."""
    if store is None or state_dir is None:
        return None
    if not settings.state_key:
        log.warning(
            "logins are not shared with other boxes: QWEN_PROXY_STATE_KEY is not set. Never use "
            "one login on two boxes like this."
        )
        return None
    # Loaded with its package `cryptography` where it is needed.
    from qwen_wsgi.state.redis.logins import RedisLogins

    return Sharing(RedisLogins(store, _state_keys(settings)), state_dir / "logins", clock, sleep)


def seal_of(settings: Settings) -> Sealing | None:
    """Seals what clients have stored; None without a key that the boxes share."""
    if not settings.state_key:
        return None
    from qwen_wsgi.state.redis.sealing import Seal

    return Seal(_state_keys(settings))


def client_keys_of(
    shared_store: SharedStore | None, database: Database, clock: Clock, state_dir: Path | None
) -> ClientKeys:
    """The client keys of this box, or of all that share a Redis."""
    if shared_store is None:
        return ClientKeys(database, clock, state_dir)
    return SharedClientKeys(shared_store, database, clock, state_dir)


def live_calls_of(settings: Settings, store: SharedStore, apart: Apart) -> LiveCalls:
    """What boxes tell each other of their calls.

    Args:
        apart: a thread for large values.
    """
    return LiveCalls(store, Packer(seal_of(settings), apart))


def _state_keys(settings: Settings) -> tuple[str, ...]:
    """The key that seals, and the one before it."""
    return tuple(filter(None, (settings.state_key, settings.old_state_key)))
