"""What gunicorn is given to run us: its worker, its client's socket, its log, and the banner.

Imported by `gunicorn.conf.py` alone, after gevent has patched the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import monkey
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from qwen_wsgi import logs
from qwen_wsgi.redaction import Redaction
from qwen_wsgi.settings import Settings, with_command

if TYPE_CHECKING:
    from qwen_wsgi.services import Services

log = logging.getLogger(__name__)

#: A connection that was used within this time may have a request on its way.
_MIN_IDLE_S: Final = 0.1

#: Read of a client's socket at a time: a large body goes through memory that is in the cache.
_RECV_BYTES: Final = 64 * 1024

#: The socket class without gevent's waiting.
_blocking_socket: Final = monkey.get_original("socket", "socket")


def log_class(settings: Settings) -> type[Logger]:
    """gunicorn's logger, which writes its few lines in the form of the application's."""

    class ServerLog(Logger):
        def setup(self, cfg: Any) -> None:
            super().setup(cfg)
            redaction = Redaction((*settings.all_client_keys, settings.upstream_api_key))
            journal = logs.is_journal(settings.environ, sys.stderr)
            for handler in self.error_log.handlers:
                handler.setFormatter(
                    logs.Formatter(settings.log_format, redaction, journal=journal)
                )

    return ServerLog


class ClientSocket:
    """gevent's socket of a client, with cheaper writing: every chunk of every stream passes here.

    A write goes to the kernel directly, and to gevent only when the kernel's buffer is full:
    gevent's `sendall` asks for the socket's options each time. The head of a 2xx answer waits for
    the first piece of the body, so that both leave in one packet.
    """

    __slots__ = ("_head", "_send", "_sock")

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._send = sock._sock.send
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith((b"HTTP/1.1 20", b"HTTP/1.0 20")):
            self._head = data
            return
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._sock.sendall(memoryview(data)[sent:])

    def recv(self, size: int, *flags: int) -> bytes:
        """gunicorn asks for all that is missing of a body, and the allocator for as much memory."""
        return self._sock.recv(min(size, _RECV_BYTES), *flags)  # type: ignore[no-any-return]

    def flush(self) -> None:
        """Send a head that no body followed; a client that is gone will be noticed elsewhere."""
        if self._head:
            data, self._head = self._head, b""
            with contextlib.suppress(OSError):
                self._sock.sendall(data)


class StreamWorker(GeventWorker):
    """gunicorn's gevent worker, which on a stop does not wait for clients that want nothing.

    A connection between two requests holds up gunicorn's graceful stop until its keep-alive time
    is over, and every official SDK keeps such connections. Here the reading half of an idle
    connection is shut, so that the parser, which waits for a request, sees the end. A request that
    is there already is answered. A head of which a part is there is lost; they come in one piece.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Connections that wait for a request, each with the time since when.
        self._waiting: dict[socket.socket, float] = {}

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        # A TLS socket (only if somebody configures gunicorn so) must encrypt what it sends.
        client = client if hasattr(client, "pending") else ClientSocket(client)
        self._waiting[client] = time.monotonic()
        try:
            super().handle(listener, client, addr)
        finally:
            self._waiting.pop(client, None)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        self._waiting.pop(sock, None)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            if isinstance(sock, ClientSocket):
                sock.flush()
            self._waiting[sock] = time.monotonic()
            if not self.alive:
                # This answer may have begun before the stop, and promised to keep the connection.
                # Not at once: a busy client's next request may be on its way already.
                gevent.spawn_later(2 * _MIN_IDLE_S, self._shut_idle)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if (services := services_of(self)) is not None:
            services.admission.draining = True
        # In a greenlet, as in gunicorn's handle_quit: a signal handler must not touch the sockets.
        gevent.spawn(self._shut_idle)

    def notify(self) -> None:
        super().notify()
        if not self.alive:
            self._shut_idle()

    def _shut_idle(self) -> None:
        """Shut what was not used just now; `notify` comes back for the rest within two seconds."""
        latest = time.monotonic() - _MIN_IDLE_S
        for client in [client for client, since in self._waiting.items() if since <= latest]:
            self._shut(client)

    @staticmethod
    def _shut(client: socket.socket) -> None:
        # Not client.shutdown(): gevent's breaks off the pending read with an error of its own.
        # An OSError: closed meanwhile, by either side.
        with (
            contextlib.suppress(OSError),
            _blocking_socket(fileno=os.dup(client.fileno())) as same,
        ):
            try:
                same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                same.shutdown(socket.SHUT_RD)
            # Else a request came this moment: its answer will close the connection.


def services_of(worker: Worker) -> Services | None:
    """What `create_app` made; None when the worker failed before it had loaded the application."""
    found: Services | None = getattr(getattr(worker, "wsgi", None), "extensions", {}).get(
        "qwen_wsgi"
    )
    return found


def announce(worker: Worker) -> None:
    """Tell from a thread that the server is ready, once the model lists are known.

    Fetching them here also spares the first call that wait. Nothing is told for a worker that
    failed before it had loaded the application.
    """
    if (services := services_of(worker)) is not None:
        application: Any = worker.wsgi
        args = (services, application.endpoints())
        threading.Thread(target=_announce, args=args, daemon=True).start()


def _announce(services: Services, endpoints: list[str]) -> None:
    # Imported here, in the worker: the master loads this module, and a reload must find new code.
    from qwen_wsgi import text

    settings = services.settings
    for note in services.discovery.notes():
        log.warning("%s", with_command(str(note), settings.command))
    accounts = services.pool.accounts()
    models = services.catalogue.models()
    problems = services.discovery.problems()
    if settings.log_format == "json":
        # Whoever reads the log expects an object in every line.
        log.info("ready", extra={"fields": text.ready(settings, accounts, models, problems)})
    else:
        banner = text.banner(settings, accounts, models, problems, endpoints)
        print(banner, file=sys.stderr, flush=True)
