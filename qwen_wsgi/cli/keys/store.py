"""Where the client keys are, for commands: the database, and the Redis that boxes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qwen_wsgi.boxes import client_keys_of, shared_store_of
from qwen_wsgi.clock import Clock
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.sqlite import Database
from qwen_wsgi.state.database.tables import database_in


@contextmanager
def opened(settings: Settings, clock: Clock) -> Iterator[tuple[Database, ClientKeys]]:
    """The database, and the keys of it; both are closed at the end."""
    directory = Path(settings.state_dir)
    with ExitStack() as open_ones:
        database = database_in(directory, clock)
        open_ones.callback(database.close)
        shared = shared_store_of(settings, clock, directory)
        if shared is not None:
            open_ones.callback(shared.close)
        yield database, client_keys_of(shared, database, clock, directory)
