"""What the page says of a login, for every way in which it can end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from qwen_wsgi.credentials.new_login import TIER_CLOSED
from qwen_wsgi.credentials.phone_login import DONE, LOST, STARTING, STOPPED, WAITING

#: What is said first.
NOTICE: Final = TIER_CLOSED


class Words(NamedTuple):
    """What is said: what happened, and what to do.

    Attributes:
        kind: a class of the stylesheet: `good`, `bad` or `plain`.
    """

    kind: str
    title: str
    text: str


_WORDS: Final[Mapping[str, Words]] = {
    STARTING: Words("plain", "Asking for a code", "The login service is asked for a code."),
    WAITING: Words(
        "plain",
        "Waiting for your confirmation",
        "Scan the code with a phone, or open the address on any device, log in there and confirm.",
    ),
    DONE: Words(
        "good",
        "Logged in",
        "The login is saved, and the server uses it from now on. If calls are refused all the "
        "same, the account has no plan: the overview says so after the first call.",
    ),
    STOPPED: Words("plain", "Stopped", "The login was stopped on this page. Nothing was saved."),
    LOST: Words(
        "bad",
        "The login was lost",
        "The part of the server that waited for your confirmation has ended, as it does at a "
        "restart or a reload. Nothing was saved. Start again.",
    ),
    "denied": Words(
        "bad", "Denied", "The login was denied on the other device. Nothing was saved."
    ),
    "expired": Words(
        "bad", "The code has expired", "Nobody confirmed it in time. Nothing was saved."
    ),
    "offline": Words(
        "bad",
        "The login service cannot be reached",
        "This box has no way to it. The phone's own network does not matter.",
    ),
    "blocked": Words(
        "bad",
        "A web page came instead of an answer",
        "A firewall, or the page of a network that wants you to log in, stands between this box "
        "and the login service.",
    ),
    "server_error": Words(
        "bad", "The login service failed", "It did not give a login. Nothing was saved."
    ),
    "not_saved": Words(
        "bad",
        "The login cannot be saved",
        "The server may not write the file, or there is no room.",
    ),
}


def words_of(state: str) -> Words:
    """What is said of a state of `phone_login.Progress`."""
    return _WORDS.get(state, Words("bad", "The login has ended", f"It ended as {state[:40]}."))


def time_left(expires_at: float, now: float) -> str:
    """How long a code is still valid: `14:05`."""
    minutes, seconds = divmod(max(0, round(expires_at - now)), 60)
    return f"{minutes}:{seconds:02d}"
