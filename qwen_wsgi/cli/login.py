"""`qwen-proxy login`: shows a device login on the terminal.

`out` gets address, code, QR code and the time left; with `--json` the same as one JSON object per
line. Tokens are never shown.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import segno

from qwen_wsgi.clock import Clock, SystemClock, sleep
from qwen_wsgi.credentials import new_login
from qwen_wsgi.credentials.oauth import device_flow
from qwen_wsgi.credentials.oauth.device_flow import (
    CodeShown,
    DeviceLogin,
    Event,
    LoginFailed,
    Waiting,
)
from qwen_wsgi.credentials.oauth.token_endpoint import TokenAnswer
from qwen_wsgi.settings import Settings

#: Exit statuses of `qwen-proxy login`, so that scripts need no text.
EXIT_OK: Final = 0
#: A setting or the account's name must be corrected.
EXIT_CONFIGURATION: Final = 2
#: The person denied the login.
EXIT_DENIED: Final = 3
#: Nobody confirmed in time.
EXIT_EXPIRED: Final = 4
#: The service could not be reached.
EXIT_OFFLINE: Final = 5
#: A firewall's web page came instead of an answer.
EXIT_BLOCKED: Final = 6
#: The service failed, or refused the login.
EXIT_SERVER_ERROR: Final = 7
#: The login could not be written to its file.
EXIT_NOT_SAVED: Final = 8
#: Ctrl-C.
EXIT_CANCELLED: Final = 130

_EXITS: Final = {
    "denied": EXIT_DENIED,
    "expired": EXIT_EXPIRED,
    "offline": EXIT_OFFLINE,
    "blocked": EXIT_BLOCKED,
    "server_error": EXIT_SERVER_ERROR,
    "not_saved": EXIT_NOT_SAVED,
}
#: Seconds between updates of the countdown on a terminal, and between its lines elsewhere.
_TICK_S: Final = 1.0
_PLAIN_TICK_S: Final = 60.0
#: Assumed for a terminal of unknown width.
_COLUMNS: Final = 80
_CLEAR_LINE: Final = "\r\x1b[K"
#: For any colours of the terminal: QR readers need dark on light, and blocks draw the light part.
_WHITE_ON_BLACK: Final = "\x1b[97;40m"
_NORMAL: Final = "\x1b[0m"
#: A margin of 2 instead of 4 modules: all readers accept it, and the code fits into 24 lines.
_QR_BORDER: Final = 2


def run(
    settings: Settings,
    *,
    account: str | None,
    json_output: bool,
    browser: bool,
    out: TextIO,
    err: TextIO,
    clock: Clock | None = None,
    sleep: Callable[[float], None] = sleep,
    open_browser: Callable[[str], bool] = webbrowser.open,
) -> int:
    """Log in, save the login, and return the exit status.

    Args:
        account: None for the login that qwen-code itself uses.
        json_output: one object per line on `out`; the last one has `exit_code`.
        browser: also open the address on this machine.

    Raises:
        SettingsError: the name or QWEN_OAUTH_BASE_URL cannot be used.
    """
    clock = clock or SystemClock()
    path = new_login.path_of(settings, account, clock)
    endpoint = new_login.endpoint_of(settings, clock)
    view: _View
    if json_output:
        view = _Events(_Output(out), sleep)
    else:
        view = _Page(_Output(out), _Output(err), settings, clock, sleep)

    def report(event: Event) -> None:
        view.show(event)
        if browser and isinstance(event, CodeShown):
            view.browser(open_browser(event.code.url))

    login = DeviceLogin(endpoint, clock=clock, sleep=view.wait, report=report)
    try:
        device_flow.check_writable(path)
        answer = login.run()
        new_login.save(path, answer, clock)
    except LoginFailed as failure:
        view.failed(failure)
        return _EXITS[failure.event]
    except KeyboardInterrupt:
        view.cancelled()
        return EXIT_CANCELLED
    view.done(answer, account, path)
    return EXIT_OK


class _View(Protocol):
    """Shows the progress of a login."""

    def show(self, event: Event) -> None: ...
    def browser(self, opened: bool) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def failed(self, failure: LoginFailed) -> None: ...
    def cancelled(self) -> None: ...
    def done(self, answer: TokenAnswer, account: str | None, path: Path) -> None: ...


class _Output:
    """A stream that accepts any text; the login goes on even if its reader closes it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> None:
        if self._gone:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except BrokenPipeError:
            self._gone = True
            # Python flushes once more when it exits, and would print an error.
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def can_show(self, text: str) -> bool:
        try:
            text.encode(getattr(self._stream, "encoding", None) or "ascii")
        except UnicodeEncodeError:
            return False
        return True

    def is_terminal(self) -> bool:
        return self._stream.isatty()

    def columns(self) -> int:
        with suppress(OSError, ValueError):
            return os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        return _COLUMNS


class _Events:
    """For programs: one JSON object per line."""

    def __init__(self, out: _Output, sleep: Callable[[float], None]) -> None:
        self._out = out
        self.wait = sleep

    def show(self, event: Event) -> None:
        if isinstance(event, CodeShown):
            self._emit(
                "code",
                url=event.code.url,
                user_code=event.code.user_code,
                left_s=round(event.left_s, 1),
                warning=new_login.TIER_CLOSED,
            )
        elif event.why in ("pending", "slow_down"):
            self._emit(event.why, left_s=round(event.left_s, 1), interval_s=event.interval_s)
        else:
            self._emit(
                "retrying", why=event.why, detail=event.detail, left_s=round(event.left_s, 1)
            )

    def browser(self, opened: bool) -> None:
        self._emit("browser", opened=opened)

    def failed(self, failure: LoginFailed) -> None:
        code = _EXITS[failure.event]
        self._emit(failure.event, exit_code=code, message=str(failure), remedy=failure.remedy)

    def cancelled(self) -> None:
        self._emit("cancelled", exit_code=EXIT_CANCELLED)

    def done(self, answer: TokenAnswer, account: str | None, path: Path) -> None:
        self._emit(
            "success",
            exit_code=EXIT_OK,
            account=account,
            file=str(path),
            resource_url=answer.resource_url,
            expires_at_ms=answer.expires_at_ms,
        )

    def _emit(self, event: str, **fields: Any) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")


class _Page:
    """For people: on a terminal a QR code and a countdown in one line, else plain lines."""

    def __init__(
        self,
        out: _Output,
        err: _Output,
        settings: Settings,
        clock: Clock,
        sleep: Callable[[float], None],
    ) -> None:
        self._out = out
        self._err = err
        self._home = settings.home
        self._clock = clock
        self._sleep = sleep
        self._live = out.is_terminal() and settings.environ.get("TERM", "dumb") != "dumb"
        self._deadline_s = 0.0
        self._note = ""
        #: When the time left is printed next.
        self._print_at_s = 0.0

    def show(self, event: Event) -> None:
        if isinstance(event, CodeShown):
            self._deadline_s = self._clock.monotonic() + event.left_s
            self._show_code(event)
        else:
            self._show_state(event)

    def browser(self, opened: bool) -> None:
        if not opened:
            self._out.write("No browser could be opened here; open the address yourself.\n")

    def wait(self, seconds: float) -> None:
        until_s = self._clock.monotonic() + seconds
        self._count_down()
        while (left_s := until_s - self._clock.monotonic()) > 0:
            self._sleep(min(_TICK_S, left_s))
            self._count_down()

    def failed(self, failure: LoginFailed) -> None:
        self._end_line()
        self._err.write(f"qwen-proxy: {failure}\n{failure.remedy}\n")

    def cancelled(self) -> None:
        self._end_line()
        self._err.write("qwen-proxy: cancelled.\n")

    def done(self, answer: TokenAnswer, account: str | None, path: Path) -> None:
        self._end_line()
        shown = f"~/{path.relative_to(self._home)}" if path.is_relative_to(self._home) else path
        until = datetime.datetime.fromtimestamp(answer.expires_at_ms / 1000, datetime.UTC)
        self._out.write(
            f"Logged in. The login is in {shown}; running servers use it from now on.\n"
            f"Its access token is good until {until:%Y-%m-%d %H:%M} UTC and is renewed by then.\n"
        )

    def _show_code(self, event: CodeShown) -> None:
        code = event.code
        self._out.write(
            f"Note: {new_login.TIER_CLOSED}\n\n"
            f"Open this address in a browser, on any device, and confirm:\n\n    {code.url}\n\n"
            f"The page must show the code {code.user_code}\n\n"
        )
        if self._live:
            self._out.write(self._qr(code.url))

    def _qr(self, url: str) -> str:
        """The QR code; empty where the terminal is too small or cannot show blocks."""
        drawn = io.StringIO()
        try:
            segno.make(url, error="l", micro=False).terminal(drawn, border=_QR_BORDER, compact=True)
        except ValueError:  # segno.DataOverflowError: an address of some thousand characters
            return ""
        lines = drawn.getvalue().splitlines()
        if len(lines[0]) > self._out.columns() or not self._out.can_show(lines[0]):
            return ""
        return "".join(f"{_WHITE_ON_BLACK}{line}{_NORMAL}\n" for line in lines) + "\n"

    def _show_state(self, event: Waiting) -> None:
        note = new_login.NOTES[event.why]
        if event.detail:
            note += f" ({event.detail})"
        if note != self._note:
            self._note = note
            # Print it now where lines are not rewritten.
            self._print_at_s = 0.0

    def _count_down(self) -> None:
        now_s = self._clock.monotonic()
        minutes, seconds = divmod(max(0, round(self._deadline_s - now_s)), 60)
        line = f"Waiting for the confirmation, {minutes}:{seconds:02d} left"
        line += f": {self._note}" if self._note else ""
        if self._live:
            # One column less: some terminals wrap when the last column is filled.
            self._out.write(_CLEAR_LINE + line[: self._out.columns() - 1])
        elif now_s >= self._print_at_s:
            self._print_at_s = now_s + _PLAIN_TICK_S
            self._out.write(line + ".\n")

    def _end_line(self) -> None:
        if self._live:
            self._out.write(_CLEAR_LINE)
