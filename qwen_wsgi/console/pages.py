"""The pages of the console, in the order of its navigation. A page is added by a line here, and by
its blueprint in `api/console/routes.py`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Page(NamedTuple):
    """A page in the navigation."""

    path: str
    title: str


#: Where the console begins.
HOME: Final = "/console"

#: No slash is doubled: `//host` is another site.
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-]+)+")

PAGES: Final = (
    Page(HOME, "Overview"),
    Page("/console/live", "Live"),
    Page("/console/usage", "Usage"),
    Page("/console/keys", "Keys"),
    Page("/console/login-to-qwen", "Log in to Qwen"),
    Page("/console/try", "Try it"),
    Page("/console/clients", "Clients"),
    Page("/console/doctor", "Doctor"),
    Page("/console/sessions", "Sessions"),
)


def page_to_return_to(path: str) -> str:
    """The page that somebody wanted before signing in; the first one if it is none of ours."""
    plain = _PATH.fullmatch(path) is not None
    below = any(path == page.path or path.startswith(page.path + "/") for page in PAGES[1:])
    return path if plain and below else HOME
