"""The one database of a box: what of it must outlast the server, for all its workers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import Clock, sleep
from qwen_wsgi.state.database import (
    background,
    cached_answers,
    calls,
    client_keys,
    console_sessions,
    host_objects,
    plan_windows,
    responses,
    videos,
)
from qwen_wsgi.state.database.sqlite import (
    Apart,
    Database,
    DatabaseUnavailable,
    TooNew,
    here,
)
from qwen_wsgi.state.shared import outbox

log = logging.getLogger(__name__)

#: Below the state directory.
DIRECTORY: Final = "database"

#: The tables of all features, in the order in which they are made.
TABLES: Final = (
    responses.TABLES,
    host_objects.TABLES,
    videos.TABLES,
    background.TABLES,
    client_keys.TABLES,
    calls.TABLES,
    plan_windows.TABLES,
    cached_answers.TABLES,
    outbox.TABLES,
    console_sessions.TABLES,
)

#: A damaged file is kept so long, for whoever wants to save something of it. Seconds.
_KEEP_DAMAGED_S: Final = 7 * 86_400.0


def database_in(
    state_dir: Path | None,
    clock: Clock,
    *,
    sleep: Callable[[float], None] = sleep,
    apart: Apart = here,
) -> Database:
    """The database of a state directory, which is opened when it is first used.

    Args:
        state_dir: None keeps it all in memory.
        apart: a thread for it alone, where there is an event loop.
    """
    return Database(
        None if state_dir is None else state_dir / DIRECTORY,
        clock,
        tables=TABLES,
        keep_damaged_s=_KEEP_DAMAGED_S,
        sleep=sleep,
        apart=apart,
    )


def prepare(state_dir: Path, clock: Clock) -> None:
    """Bring the tables of an older version forward before a server starts its workers.

    Where the file cannot be used now, the log says why, and the server starts without it.

    Raises:
        TooNew: a newer version of the proxy wrote the file.
    """
    database = database_in(state_dir, clock)
    try:
        database.run(lambda _: None)
    except TooNew:
        raise
    except DatabaseUnavailable as error:
        log.error("%s", error)
    finally:
        database.close()
