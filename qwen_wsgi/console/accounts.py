"""An account in the words of the overview. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from qwen_wsgi import text
from qwen_wsgi.upstream.failures.causes import CAUSES, remedy_of

#: How a state looks: what is well, what passes, what somebody has to see to.
GOOD, WAITING, BAD = "good", "waiting", "bad"


class Paused(Protocol):
    """A model that gets no calls (`credentials.credential.PausedModel`)."""

    @property
    def model(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def cause(self) -> str: ...


class Window(NamedTuple):
    """A window of an account's plan.

    Attributes:
        share: how much of it is used, from 0 to 1; None if that is not known.
    """

    name: str
    told: str
    share: float | None
    spent: bool


class ShownAccount(NamedTuple):
    """An account as the page shows it.

    Attributes:
        mood: `GOOD`, `WAITING` or `BAD`.
        state: in a word or two.
        facts: label and text, in order.
        remedy: what to do; "" for nothing.
    """

    name: str
    mood: str
    state: str
    detail: str
    facts: tuple[tuple[str, str], ...]
    windows: tuple[Window, ...]
    remedy: str


def shown(
    row: Mapping[str, Any], *, in_flight: int = 0, paused: Iterable[Paused] = ()
) -> ShownAccount:
    """An account for the page.

    Args:
        row: as `text.status_row` makes it.
        in_flight: its calls in flight, of all workers.
        paused: its models that get no calls for a while.
    """
    cause, pause_s = str(row["cause"]), float(row["left_alone_s"])
    mood, state = _state(row, pause_s)
    windows = (row.get("plan") or {}).get("windows", ())
    remedy = str(row["remedy"]) or (remedy_of(cause) if cause else "")
    facts = [
        ("from", str(row["origin"])),
        ("endpoint", str(row["endpoint"])),
        ("credential", str(row["credential"])),
        ("in flight", "1 call" if in_flight == 1 else f"{in_flight or 'no'} calls"),
        ("last call", _last_call(row.get("last_call"))),
    ]
    if pause_s:
        facts.append(("no calls for", f"{text.duration(pause_s)}: {meaning_of(cause)}"))
    facts += [
        (f"no calls for {each.model}", f"{text.duration(each.seconds)}: {meaning_of(each.cause)}")
        for each in paused
    ]
    return ShownAccount(
        str(row["name"]),
        mood,
        state,
        str(row["detail"]),
        tuple(facts),
        tuple(map(_window, windows)),
        remedy,
    )


def _state(row: Mapping[str, Any], pause_s: float) -> tuple[str, str]:
    if pause_s or row["state"] == "paused":
        return WAITING, "gets no calls now"
    if not row["usable"]:
        return BAD, _WORDS.get(str(row["state"]), str(row["state"]))
    last = row.get("last_call")
    if last is None:
        return GOOD, "ready, not tried yet"
    return (WAITING, "last call failed") if last["cause"] else (GOOD, "works")


#: States with which no call can be made.
_WORDS: Final = {"missing": "no credential", "unpaid": "not paid"}


def meaning_of(cause: str) -> str:
    """A cause of failures in words."""
    found = CAUSES.get(cause)
    return found.meaning if found is not None else cause.replace("_", " ")


def _last_call(last: Mapping[str, Any] | None) -> str:
    if last is None:
        return "none yet"
    age = f"{text.duration(last['age_s'])} ago"
    if not last["cause"]:
        return f"answered {age}"
    before = last["answered_s"]
    answered = "" if before is None else f"; it answered {text.duration(before)} ago"
    return f"failed {age}: {meaning_of(str(last['cause']))}{answered}"


def _window(window: Mapping[str, Any]) -> Window:
    share = window["share"]
    return Window(
        str(window["window"]),
        text.window_text(window),
        None if share is None else min(1.0, max(0.0, float(share))),
        bool(window["spent"]),
    )
