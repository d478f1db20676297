"""What gunicorn's master is given: settings that a reload reads anew, a reload and a stop.

Imported by `gunicorn.conf.py` alone. gunicorn's own reload stops the old workers before the new
ones can serve, and then waits for their streams, deaf to everything else. Its stop begins by
closing the listener. See docs/decisions/062-changes-without-a-gap.md.
"""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING, Any, Final

from gunicorn import sock
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from qwen_wsgi import env_file
from qwen_wsgi import settings as settings_module
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.reporting import REFUSED
from qwen_wsgi.server import StreamWorker, hold_signals
from qwen_wsgi.settings import Settings

if TYPE_CHECKING:
    from qwen_wsgi.tool_runner.child import RunnerChild

#: What a reload cannot change: the listener is open, and running workers share the directory.
_FIXED: Final = (
    *("QWEN_PROXY_BIND", "QWEN_PROXY_HOST", "QWEN_PROXY_PORT", "HOST", "PORT"),
    "QWEN_PROXY_STATE_DIR",
)


@dataclasses.dataclass
class Reload:
    """What a reload did to the settings.

    Attributes:
        problem: why they stay as they were; empty if they do not.
        changed: the variables that have another value now.
        waiting: those that have one only after a restart.
    """

    problem: str = ""
    changed: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


class _Current:
    """The settings with which this master runs, and what the latest reload did to them."""

    settings: Settings | None = None
    latest = Reload()


def load_settings() -> Settings:
    """Read the environment file and load the settings, into this process's environment as well: the
    workers have it from there. At a reload, settings that cannot be used change nothing.

    Raises:
        SettingsError: at the start, they cannot be used.
    """
    old, environ = _Current.settings, settings_module.environment()
    environ.pop(REFUSED, None)
    if old is None:
        layered = env_file.layered(environ)
        _Current.settings = settings_module.load(layered)
    else:
        try:
            layered, _Current.settings, _Current.latest = _renewed(old, environ)
        except SettingsError as error:
            layered = {**environ, REFUSED: str(error)}
            _Current.latest = Reload(problem=str(error))
    settings_module.become(layered)
    return _Current.settings or settings_module.load(layered)


def _renewed(old: Settings, environ: dict[str, str]) -> tuple[dict[str, str], Settings, Reload]:
    """The environment and the settings after a reload.

    Raises:
        SettingsError: they cannot be used.
    """
    path = old.environment_file
    if path and env_file.has_values(environ) and env_file.read(path) is None:
        # Some editors take a file away for a moment; and the keys of all clients may be in it.
        raise SettingsError(f"{env_file.VARIABLE}={path} is not there any more")
    new, waiting = env_file.keep(environ, env_file.layered(environ), _FIXED)
    settings = settings_module.load(new)
    before = {**environ, **dict.fromkeys(waiting, "")}
    after = {**new, **dict.fromkeys(waiting, "")}
    changed = sorted(
        name
        for name in before.keys() | after.keys()
        if name[:1] != "_" and before.get(name) != after.get(name)
    )
    return new, settings, Reload(changed=tuple(changed), waiting=waiting)


def tell_reload(server: Arbiter) -> None:
    """gunicorn's hook after a reload of its configuration: log what became of the settings."""
    latest = _Current.latest
    log: Any = server.log
    if latest.problem:
        log.error("reload: the settings stay as they were: %s", latest.problem)
        return
    if latest.changed:
        log.info("reload: changed %s", ", ".join(latest.changed))
    if latest.waiting:
        log.warning(
            "reload: %s changed, which takes effect at the next restart", ", ".join(latest.waiting)
        )


class Master(Arbiter):
    """gunicorn's master with a reload and a stop of its own."""

    log: Any
    #: Whether the next worker is the first one after a reload.
    _has_reloaded = False
    #: The process that runs tools; None where there never were any.
    _tools: RunnerChild | None = None

    @classmethod
    def take_over(cls, arbiter: Arbiter) -> None:
        """Make gunicorn's master, which is about to start, one of these. gunicorn's command makes
        it by itself; its first hook is the earliest moment."""
        arbiter.__class__ = cls

    @staticmethod
    def before_fork(master: Master, worker: StreamWorker) -> None:
        """gunicorn's hook before it forks a worker."""
        worker.tells, master._has_reloaded = master._has_reloaded, False
        hold_signals()

    # --- reload -----------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the configuration again, and have new workers take the place of the old ones.

        Does not wait: `manage_workers` goes on with it.
        """
        self.app.reload()
        self.setup(self.app)
        self.log.reopen_files()
        self.cfg.on_reload(self)
        self._has_reloaded = True
        if self._tools is not None:
            self._tools.reload()
        for worker in self._workers():
            worker.is_old = True
            if not worker.is_ready:
                # Of a reload a moment ago: it has served nobody.
                self._send_off(worker)
        self.manage_workers()

    def manage_workers(self) -> None:
        """Start the workers that are missing, and send off those that are too many, or whose
        successors serve; and keep the process that runs tools."""
        self._keep_tools()
        for _ in range(self.num_workers - len(self._current())):
            self.spawn_worker()
        for worker in sorted(self._current(), key=lambda each: each.age)[: -self.num_workers]:
            worker.is_old = True
        if all(worker.is_ready for worker in self._current()):
            for worker in self._workers():
                if worker.is_old and not worker.is_sent_off:
                    self._send_off(worker)

    def reap_workers(self) -> None:
        """Collect workers that have ended. New ones that cannot start after a reload end nothing
        while old ones serve: these go on.

        Raises:
            HaltServer: a worker cannot start, and no other one serves.
        """
        if self._tools is not None:
            self._tools.reap()
        try:
            super().reap_workers()
        except HaltServer as halt:
            serving = [each for each in self._workers() if each.is_ready and not each.is_sent_off]
            if not any(each.is_old for each in serving):
                raise
            self.log.error(
                "reload: the new workers cannot start (%s The lines above say why); the old ones "
                "go on. Correct it, and reload again.",
                halt.reason,
            )
            for worker in self._workers():
                worker.is_old = worker not in serving
            self.num_workers = len(serving)

    def _keep_tools(self) -> None:
        settings = _Current.settings
        if settings is None or (self._tools is None and not settings.tools):
            return
        if self._tools is None:
            from qwen_wsgi.tool_runner.child import RunnerChild

            self._tools = RunnerChild(self._tell)
        self._tools.keep(settings)

    def _tell(self, text: str, is_error: bool) -> None:
        (self.log.error if is_error else self.log.info)("%s", text)

    def _workers(self) -> list[StreamWorker]:
        workers: Any = self.WORKERS
        return list(workers.values())

    def _current(self) -> list[StreamWorker]:
        return [worker for worker in self._workers() if not worker.is_old]

    def _send_off(self, worker: StreamWorker) -> None:
        """Have a worker finish what it has, and end. The others serve what is new."""
        worker.is_sent_off = True
        self.kill_worker(int(worker.pid), signal.SIGTERM)

    # --- stop -------------------------------------------------------------------------------------

    def stop(self, graceful: bool = True) -> None:
        """Stop all workers.

        Until they have ended the listener stays open: they refuse new calls, or leave them to the
        next server if systemd keeps the socket.
        """
        listeners: list[Any] = []
        if graceful:
            listeners = list(self.LISTENERS)
            self.LISTENERS = []  # type: ignore[misc]  # gunicorn does the same
            if not self.systemd:
                for worker in self._workers():
                    worker.refuse()
        super().stop(graceful)
        if self._tools is not None:
            # The last calls of workers may have needed it.
            self._tools.stop()
        if listeners:
            of_another = self.reexec_pid != 0 or self.master_pid != 0
            sock.close_sockets(listeners, unlink=not self.systemd and not of_another)
