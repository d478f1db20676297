"""What the web API reports in place of an answer, mostly with HTTP 200."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from qwen_wsgi.protocol.json_access import items, text

CHALLENGE: Final = "challenge"
RATE_LIMITED: Final = "rate_limited"
UNAUTHORIZED: Final = "unauthorized"
INTERNAL: Final = "internal_error"
REFUSED: Final = "refused"

_CHALLENGED: Final = re.compile(r"FAIL_SYS_USER_VALIDATE|RGV587|_____tmd_____")
_NOT_LOGGED_IN: Final = re.compile(
    r"unauthori[sz]ed|session_?expired|need_?login|token_?expired|invalid_?token|not_?logged", re.I
)
_LIMITED: Final = re.compile(r"rate_?limit|too many requests", re.I)
_INTERNAL: Final = re.compile(r"internal[ _]?(?:server[ _]?)?error", re.I)
_MOST_HOURS: Final = 24 * 31
_SHOWN: Final = 300


class Reported(NamedTuple):
    """A failure.

    Attributes:
        cause: one of the words above.
        message: in the host's words; "" if it has none.
        wait_s: how long it wants to be left alone; None if it does not say.
    """

    cause: str
    message: str = ""
    wait_s: float | None = None


def is_challenge(body: bytes) -> bool:
    """Whether an answer that is no event stream is the firewall's captcha."""
    return _CHALLENGED.search(body[:65536].decode(errors="replace")) is not None


def reported_by(value: Any) -> Reported | None:
    """The failure that a JSON answer, or an event, reports; None if it reports none."""
    if not isinstance(value, dict):
        return None
    if "ret" in value and any(_CHALLENGED.search(str(each)) for each in items(value["ret"])):
        return Reported(CHALLENGE)
    error = value.get("error")
    if error is None and value.get("success") is False:
        error = value.get("data") if isinstance(value.get("data"), dict) else value
    if error is None and "choices" not in value and (value.get("detail") or value.get("details")):
        error = value
    if error is None:
        return None
    return _reported(error if isinstance(error, dict) else {"message": str(error)})


def _reported(error: dict[str, Any]) -> Reported:
    code = text(error.get("code"))
    words = next(
        (
            found
            for name in ("details", "detail", "message", "msg")
            if (found := text(error.get(name)))
        ),
        "",
    )
    both = f"{code} {words}"
    message = (f"{code}: {words}" if code and words else code or words)[:_SHOWN]
    if _CHALLENGED.search(both):
        return Reported(CHALLENGE, message)
    if _LIMITED.search(both):
        hours = error.get("num")
        wait_s = None
        if isinstance(hours, int | float) and not isinstance(hours, bool):
            wait_s = 3600.0 * hours if 0 < hours <= _MOST_HOURS else None
        return Reported(RATE_LIMITED, message, wait_s)
    if _NOT_LOGGED_IN.search(both):
        return Reported(UNAUTHORIZED, message)
    return Reported(INTERNAL if _INTERNAL.search(both) else REFUSED, message)
