"""The runner as a child: of the server, which keeps it running, or of a command that asks it once.

Started by `posix_spawn`: gevent replaces `subprocess` in the server by one that takes the signal of
ended children, which is gunicorn's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.tool_runner import sources

log = logging.getLogger(__name__)

#: Before one that has ended is started anew; doubled each time, until it stays.
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_STAYS_S: Final = 60.0
#: For the end of its sandboxes.
_STOP_S: Final = 8.0
_START_S: Final = 20.0
#: What Python and gunicorn have changed, and a program expects as it was.
_RESET: Final = (signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Spawn = Callable[[Mapping[str, str]], int]


def spawn(environ: Mapping[str, str], *more: str) -> int:
    """Start a runner, which ends with this process; its process id."""
    command = [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "qwen_wsgi.tool_runner"]
    command += ["--parent", str(os.getpid()), *more]
    return os.posix_spawn(command[0], command, environ, setsigmask=(), setsigdef=_RESET)


class RunnerChild:
    """Keeps a runner while the settings want one.

    Args:
        tell: a line for the server's log, and whether it is an error.
        monotonic: seconds of a clock.
    """

    def __init__(
        self,
        tell: Callable[[str, bool], None],
        *,
        start: Spawn = spawn,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._start = start
        self._monotonic = monotonic
        self._pid = 0
        self._began_s = 0.0
        self._pause_s = _PAUSE_S
        self._next_s = 0.0

    def keep(self, settings: Settings) -> None:
        """Start one if it is wanted and not there, and its pause is over; end one that is not
        wanted any more. Called about every second."""
        self.reap()
        if not is_wanted(settings):
            self.stop()
        elif not self._pid and self._monotonic() >= self._next_s:
            try:
                self._pid = self._start(settings.environ)
            except OSError as error:
                self._later()
                self._tell(f"the process that runs tools cannot be started: {error}", True)
                return
            self._began_s = self._monotonic()

    def reap(self) -> None:
        """Notice that it has ended."""
        if not self._pid:
            return
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has collected it
            pid, status = self._pid, 0
        if pid:
            self._pid = 0
            self._later()
            self._tell(
                f"the process that runs tools has ended ({_how(status)}); it is started anew in "
                f"{self._next_s - self._monotonic():.0f} s",
                True,
            )

    def reload(self) -> None:
        """Have it read tools.json anew."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGHUP)

    def stop(self) -> None:
        """End it, with all its sandboxes."""
        if self._pid:
            pid, self._pid = self._pid, 0
            end(pid)

    def _later(self) -> None:
        now_s = self._monotonic()
        if self._began_s and now_s - self._began_s > _STAYS_S:
            self._pause_s = _PAUSE_S
        self._next_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def is_wanted(settings: Settings) -> bool:
    """Whether the server is to start a runner: there are tools, and no service for them."""
    return bool(settings.tools) and not settings.tools_socket and not sources.is_service()


def end(pid: int) -> None:
    """End a child, politely at first."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        end_s = time.monotonic() + _STOP_S
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end_s:
                # Its sandboxes end with it all the same.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.02)


@contextlib.contextmanager
def temporary(settings: Settings) -> Iterator[str]:
    """A runner for a command, while no other one runs: the path of its socket.

    Raises:
        SettingsError: it cannot be started; it has told why, unless tools.json is to blame.
    """
    sources.entries(settings)
    with tempfile.TemporaryDirectory(prefix="qwen-proxy-tools-") as folder:
        path = str(Path(folder) / "tools.sock")
        pid = spawn({**settings.environ, "LOG_LEVEL": "ERROR"}, "--socket", path)
        try:
            _wait_for(path, pid)
            yield path
        finally:
            end(pid)


def listens(path: str) -> bool:
    """Whether a runner listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            with sources.short_path(path) as short:
                probe.connect(short)
        except OSError:
            return False
    return True


def _wait_for(path: str, pid: int) -> None:
    end_s = time.monotonic() + _START_S
    while not listens(path):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            raise SettingsError(f"the process that runs tools has ended ({_how(status)})")
        if time.monotonic() > end_s:
            raise SettingsError(f"the process that runs tools did not start within {_START_S:g} s")
        time.sleep(0.05)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else f"signal {_signal_name(-code)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal: only the first and the last of them have names
        return str(number)
