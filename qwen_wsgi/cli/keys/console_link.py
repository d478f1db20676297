"""`qwen-proxy console`: a link that opens the console in a browser, once."""

from __future__ import annotations

import json
from typing import Final, TextIO
from urllib.parse import urlsplit

from qwen_wsgi import text
from qwen_wsgi.access.client_key import KeysUnavailable
from qwen_wsgi.cli import running
from qwen_wsgi.cli.keys.store import opened
from qwen_wsgi.clients import command as clients
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.errors import CannotStartYet
from qwen_wsgi.net import is_loopback
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.console_sessions import LINK_S, ConsoleSessions
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable

_NO_ADMIN: Final = (
    "While there is no key of an admin, the server opens the console to its own machine only. To "
    "use it from another one: qwen-proxy keys add NAME --admin"
)


def run(
    settings: Settings,
    *,
    url: str,
    json_output: bool,
    out: TextIO,
    err: TextIO,
    clock: Clock | None = None,
) -> int:
    """Make a link and print it; the exit status.

    Args:
        url: the server's address as the browser has it; "" takes it from the settings.

    Raises:
        SettingsError: `url` is no address.
        CannotStartYet: the database cannot be used now.
    """
    clock = clock or SystemClock()
    try:
        with opened(settings, clock) as (database, keys):
            admin = has_admin(settings, keys, clock)
            origin = _origin(settings, url, admin=admin)
            secret = ConsoleSessions(database, clock).add_link()
    except (DatabaseUnavailable, KeysUnavailable) as error:
        raise CannotStartYet(f"no link can be made: {error}") from None
    # Behind the `#`, which no browser sends: it is in no log and no history of a proxy.
    link = f"{origin}/console/link#{secret}"
    if json_output:
        out.write(json.dumps({"url": link, "expires_in_s": LINK_S}, indent=2) + "\n")
    else:
        out.write(
            f"Open this in a browser within {LINK_S // 60} minutes; it works once:\n\n"
            f"    {link}\n\n"
        )
    for note in _notes(settings, origin, admin=admin):
        err.write(f"note: {note}\n")
    return 0


def has_admin(settings: Settings, keys: ClientKeys, clock: Clock) -> bool:
    """Whether there is a key of an admin. Raises KeysUnavailable."""
    now = clock.now()
    return bool(settings.admin_keys) or any(key.admin and key.is_valid(now) for key in keys.all())


def _origin(settings: Settings, url: str, *, admin: bool) -> str:
    """The server's address for the link. Raises SettingsError."""
    if url or admin or settings.public_url:
        return clients.origin(settings, url)[0]
    return text.base_url(settings).removesuffix("/v1")


def _notes(settings: Settings, origin: str, *, admin: bool) -> list[str]:
    notes = []
    if not admin and not is_loopback(urlsplit(origin).hostname or ""):
        notes.append(_NO_ADMIN)
    answer = running.ask(settings, "/health/live")
    if answer.value is None:
        notes.append(f"the server ({answer.server}) does not answer now: {answer.why}")
    return notes
