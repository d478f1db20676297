"""The pages of the console, in the order of its navigation. A page is added by a line here, and by
its blueprint in `api/console/routes.py`."""

from __future__ import annotations

from typing import Final, NamedTuple


class Page(NamedTuple):
    """A page in the navigation."""

    path: str
    title: str


#: Where the console begins.
HOME: Final = "/console"

PAGES: Final = (
    Page(HOME, "Overview"),
    Page("/console/keys", "Keys"),
    Page("/console/clients", "Clients"),
    Page("/console/doctor", "Doctor"),
    Page("/console/sessions", "Sessions"),
)


def page_to_return_to(path: str) -> str:
    """The page that somebody wanted before signing in; the first one if it is none of ours."""
    return path if any(path == page.path for page in PAGES) else HOME
