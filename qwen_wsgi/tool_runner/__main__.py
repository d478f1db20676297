"""The runner of tools: `python -m qwen_wsgi.tool_runner [--parent PID] [--socket PATH]`.

`serve` starts it as a child, and systemd as the service qwen-proxy-tools. It ends on SIGTERM, reads
tools.json anew on SIGHUP, and ends with its parent, however that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from qwen_wsgi import env_file, logs
from qwen_wsgi import settings as settings_module
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.tool_runner import sources, wire
from qwen_wsgi.tool_runner.config import Entry
from qwen_wsgi.tool_runner.sandbox import Bounds, Sandbox
from qwen_wsgi.tool_runner.service import Service
from qwen_wsgi.tool_runner.toolbox import Toolbox, foreign_servers, server_of

log = logging.getLogger("qwen_wsgi.tool_runner")

EXIT_CONFIGURATION: Final = 2
#: The first socket that systemd passes (sd_listen_fds(3)).
_FIRST_PASSED: Final = 3
_BACKLOG: Final = 512
#: Packages with logs of their own.
_PACKAGES: Final = ("mcp", "httpx2", "httpcore2")
#: Numbers of files that a parent may have open.
_MOST_FILES: Final = 1 << 20


def main() -> int:
    """Run until a signal comes, or the parent ends; the exit status."""
    parser = argparse.ArgumentParser(prog="qwen_wsgi.tool_runner")
    parser.add_argument("--parent", type=int, help="the process with which this one ends")
    parser.add_argument("--socket", help="where to listen, instead of where the settings say")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        # gunicorn's listening sockets pass to every program that it starts.
        os.closerange(_FIRST_PASSED, _MOST_FILES)
    for name in _PACKAGES:
        # Python writes warnings without a handler itself. These quote addresses of clients, which
        # may hold a secret; what matters of them is told by this package.
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
    try:
        tools = _Tools()
        tools.read()
        path = arguments.socket or sources.own_socket(tools.settings)
        return asyncio.run(_run(tools, path, arguments.parent))
    except SettingsError as error:
        print(f"qwen-proxy: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION


class _Tools:
    """The settings and tools.json, as they were read last.

    Attributes:
        settings, entries: there after the first `read`.
    """

    settings: Settings
    entries: tuple[Entry, ...]

    def __init__(self) -> None:
        #: Also those of earlier reads: what they were for ends a little later.
        self._secrets: set[str] = set()

    def read(self) -> None:
        """Read them, and keep what is secret of them out of the log.

        Raises:
            SettingsError: they cannot be used, and stay as they were.
        """
        settings = settings_module.load(env_file.layered(settings_module.environment()))
        entries = sources.entries(settings)
        self.settings, self.entries = settings, entries
        self._secrets.update(sources.secrets_of(settings, entries))
        logs.configure(
            level=settings.log_level,
            style=settings.log_format,
            secrets=self._secrets,
            environ=settings.environ,
        )

    def toolbox(self) -> Toolbox:
        """A toolbox with them."""
        settings = self.settings
        bounds = Bounds(
            memory=settings.tool_memory_bytes,
            processes=settings.tool_processes,
            disk=settings.tool_disk_bytes,
        )
        sandbox = Sandbox(bounds, private=sources.private_paths(settings))
        servers = [
            server_of(
                entry,
                sandbox,
                output_bytes=settings.tool_output_bytes,
                hosts=settings.fetch_hosts,
            )
            for entry in self.entries
        ]
        foreign = foreign_servers(
            settings.tool_hosts,
            timeout_s=settings.tool_timeout_s,
            output_bytes=settings.tool_output_bytes,
        )
        return Toolbox(
            servers, foreign, timeout_s=settings.tool_timeout_s, calls=settings.tool_calls
        )


async def _run(tools: _Tools, path: str, parent: int | None) -> int:
    over = asyncio.Event()
    reload = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    if parent is not None and not _end_with(parent, over.set):
        return 0
    # Whoever asks waits while the tools are loaded, instead of being refused.
    with _listening(path) as listener:
        service = Service(tools.toolbox())
        server = await asyncio.start_unix_server(
            service.serve, sock=listener, limit=wire.LONGEST_QUESTION
        )
        log.info("tools: listening at %s", path)
        try:
            await _until(over, reload, service, tools)
        finally:
            server.close()
    return 0


async def _until(
    over: asyncio.Event, reload: asyncio.Event, service: Service, tools: _Tools
) -> None:
    """Run the toolbox; at a reload a new one takes its place."""
    running = asyncio.create_task(service.toolbox.run())
    try:
        while True:
            waits = [asyncio.create_task(each.wait()) for each in (over, reload)]
            try:
                await asyncio.wait((*waits, running), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if over.is_set():
                return
            if running.done():
                running.result()
                return
            reload.clear()
            toolbox = _renewed(tools)
            if toolbox is not None:
                service.toolbox, old = toolbox, running
                running = asyncio.create_task(toolbox.run())
                old.cancel()
                await asyncio.gather(old, return_exceptions=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _renewed(tools: _Tools) -> Toolbox | None:
    """The toolbox of the settings and the file as they are now; None if they cannot be used."""
    try:
        tools.read()
    except SettingsError as error:
        log.error("reload: the tools stay as they were: %s", error)
        return None
    log.info("reload: the tools were read anew")
    return tools.toolbox()


def _end_with(parent: int, end: Callable[[], None]) -> bool:
    """Have `end` called when the parent ends; False if it has ended already."""
    try:
        number = os.pidfd_open(parent)
    except ProcessLookupError:
        return False
    if os.getppid() != parent:
        os.close(number)
        return False
    asyncio.get_running_loop().add_reader(number, end)
    return True


@contextlib.contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    """A socket that listens for this user alone: systemd's, or one at a path.

    Raises:
        SettingsError: there can be none.
    """
    if (passed := _passed()) is not None:
        with passed:
            yield passed
        return
    place = Path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(place.lstat().st_mode):
                place.unlink()
        before = os.umask(0o177)
        try:
            with sources.short_path(path) as short:
                listener.bind(short)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"the runner of tools cannot listen at {path}: {error.strerror or error}"
        ) from None
    mine = place.stat()
    try:
        with listener:
            yield listener
    finally:
        # Not that of a successor, which has the same name.
        with contextlib.suppress(OSError):
            now = place.stat()
            if (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino):
                place.unlink()


def _passed() -> socket.socket | None:
    environ = settings_module.environment()
    try:
        count = int(environ.get("LISTEN_FDS", "0"))
        if int(environ.get("LISTEN_PID", "0")) != os.getpid() or count < 1:
            return None
    except ValueError:
        return None
    return socket.socket(fileno=_FIRST_PASSED)


if __name__ == "__main__":
    sys.exit(main())
