"""A login that is begun on a web page and confirmed on another device, such as a phone.

It runs in the worker that was asked for it; what it has come to is in a file of the state
directory, so that every worker can show it, and stop it. No token and no device code is in the
file. One login at a time: a new one takes the place of the old one, which then ends.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from qwen_wsgi import whole_files
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import new_login
from qwen_wsgi.credentials.oauth import device_flow
from qwen_wsgi.credentials.oauth.device_flow import CodeShown, DeviceLogin, Event, LoginFailed
from qwen_wsgi.credentials.oauth.token_endpoint import TokenEndpoint
from qwen_wsgi.errors import QwenProxyError
from qwen_wsgi.settings import Settings

log = logging.getLogger(__name__)

FILE: Final = "login.json"

#: How long a login that runs may write nothing: polls are 10 s apart, and one may take 18 s.
LOST_S: Final = 60.0
#: How often it looks whether it is still wanted.
_LOOK_S: Final = 1.0
_LARGEST: Final = 16 * 1024

STARTING, WAITING, DONE = "starting", "waiting", "done"
#: Ends beside those of `LoginFailed.event`.
STOPPED, LOST = "stopped", "lost"
_RUNS: Final = (STARTING, WAITING)


@dataclass(frozen=True)
class Progress:
    """What a login has come to.

    Attributes:
        state: `starting`, `waiting`, `done`, `stopped` (by a person), `lost` (with its worker), or
            how it failed: `LoginFailed.event`.
        account: the name of the account, or None for qwen-code's own login.
        url, user_code: what the person opens, and what is shown there.
        expires_at: of the code, seconds since 1970.
        note: what is said of the latest poll.
        message, remedy: of a failure.
        file: where the login was saved.
        written_at: seconds since 1970.
    """

    id: str
    state: str = STARTING
    account: str | None = None
    url: str = ""
    user_code: str = ""
    expires_at: float = 0.0
    note: str = ""
    message: str = ""
    remedy: str = ""
    file: str = ""
    written_at: float = 0.0

    @property
    def runs(self) -> bool:
        return self.state in _RUNS


class _Unwanted(QwenProxyError):
    """The login was stopped, or another one has taken its place."""


class PhoneLogin:
    """Begins, shows and stops the login of this box.

    Args:
        state_dir: where workers share what it has come to.
        begin: runs the login beside its caller, such as a thread's start.
        endpoint_of: the service that logs in. Raises SettingsError.
    """

    def __init__(
        self,
        settings: Settings,
        state_dir: Path,
        clock: Clock,
        *,
        begin: Callable[[Callable[[], None]], None],
        sleep: Callable[[float], None],
        endpoint_of: Callable[[Settings, Clock], TokenEndpoint] = new_login.endpoint_of,
    ) -> None:
        self._settings = settings
        self._file = state_dir / FILE
        self._clock = clock
        self._begin = begin
        self._sleep = sleep
        self._endpoint_of = endpoint_of

    def seen(self) -> Progress | None:
        """What the latest login has come to; None if there was none."""
        found = self._read()
        if found is not None and found.runs and self._clock.now() - found.written_at > LOST_S:
            return replace(found, state=LOST)
        return found

    def start(self, account: str | None) -> Progress:
        """Begin a login, in the place of one that runs.

        Args:
            account: its name, or None for qwen-code's own login.

        Raises:
            SettingsError: the name cannot be used, or the address of the service.
            OSError: the state directory cannot be written.
        """
        path = new_login.path_of(self._settings, account, self._clock)
        endpoint = self._endpoint_of(self._settings, self._clock)
        progress = Progress(secrets.token_hex(8), account=account, file=str(path))
        self._write(progress)
        self._begin(lambda: self._run(progress, path, endpoint))
        return progress

    def stop(self) -> None:
        """End the login that runs, if there is one; its worker sees it within a second.

        Raises:
            OSError: the state directory cannot be written.
        """
        found = self._read()
        if found is not None and found.runs:
            self._write(replace(found, state=STOPPED))

    # --- the login -------------------------------------------------------------------------------

    def _run(self, progress: Progress, path: Path, endpoint: TokenEndpoint) -> None:
        try:
            ended = self._ended(progress, path, endpoint)
            found = self._read()
            # One that is saved is told also to a person who has just stopped it.
            if found is None or (found.id == ended.id and (found.runs or ended.state == DONE)):
                self._write(ended)
        except _Unwanted:
            return
        except OSError as error:
            log.error("a login cannot be shown: %s: %s", self._file, error.strerror or error)

    def _ended(self, progress: Progress, path: Path, endpoint: TokenEndpoint) -> Progress:
        known = progress

        def report(event: Event) -> None:
            nonlocal known
            known = self._after(known, event)
            self._put(known)

        login = DeviceLogin(endpoint, clock=self._clock, sleep=self._pause(progress), report=report)
        try:
            device_flow.check_writable(path)
            answer = login.run()
            self._check_wanted(progress)
            new_login.save(path, answer, self._clock)
        except LoginFailed as failure:
            remedy = failure.remedy.replace("Run the command again", "Start again")
            return replace(known, state=failure.event, message=str(failure), remedy=remedy)
        except (_Unwanted, OSError):
            raise
        except Exception as error:  # the thread's top: a person waits for the end
            log.error("a login failed", exc_info=error)
            message = "A fault of the proxy itself; its log says more."
            return replace(known, state=LoginFailed.event, message=message)
        return replace(known, state=DONE, note="")

    def _after(self, known: Progress, event: Event) -> Progress:
        if isinstance(event, CodeShown):
            return replace(
                known,
                state=WAITING,
                url=event.code.url,
                user_code=event.code.user_code,
                expires_at=self._clock.now() + event.left_s,
            )
        note = new_login.NOTES[event.why]
        return replace(known, note=f"{note}: {event.detail}" if event.detail else note)

    def _pause(self, progress: Progress) -> Callable[[float], None]:
        def pause(seconds: float) -> None:
            until_s = self._clock.monotonic() + seconds
            while (left_s := until_s - self._clock.monotonic()) > 0:
                self._check_wanted(progress)
                self._sleep(min(_LOOK_S, left_s))
            self._check_wanted(progress)

        return pause

    def _check_wanted(self, progress: Progress) -> None:
        found = self._read()
        if found is None or found.id != progress.id or not found.runs:
            raise _Unwanted("stopped, or another one has begun")

    # --- its file --------------------------------------------------------------------------------

    def _put(self, progress: Progress) -> None:
        self._check_wanted(progress)
        self._write(progress)

    def _write(self, progress: Progress) -> None:
        """Advisory, like all that workers share: nothing is lost with it but the view."""
        progress = replace(progress, written_at=self._clock.now())
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        whole_files.replace(self._file, json.dumps(asdict(progress)).encode(), durable=False)

    def _read(self) -> Progress | None:
        try:
            with open(self._file, encoding="utf-8") as file:
                value = json.loads(file.read(_LARGEST))
            known = {field.name for field in fields(Progress)}
            return Progress(**{name: value[name] for name in value if name in known})
        except (OSError, ValueError, TypeError):
            return None
