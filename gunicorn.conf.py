"""How gunicorn runs the proxy: gevent workers, sizes, timeouts, and a stop that is graceful.

`qwen-proxy serve` starts `python -m gunicorn -c gunicorn.conf.py wsgi:application`. The values
that an operator may change are settings (`qwen-proxy settings`); the others are fixed here.
"""

from __future__ import annotations

# Patching comes first: what is imported below must see gevent's sockets, locks and threads.
# gunicorn itself is already loaded, and it keeps modules rather than names out of them, so that
# patching the modules in place reaches it too.
from gevent import monkey

monkey.patch_all()

import contextlib  # noqa: E402  # all below: after the patching
import gc  # noqa: E402
import ipaddress  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from types import FrameType  # noqa: E402
from typing import Any, Final  # noqa: E402

import gevent  # noqa: E402
from gunicorn.glogging import Logger  # noqa: E402
from gunicorn.workers.base import Worker  # noqa: E402
from gunicorn.workers.ggevent import GeventWorker  # noqa: E402

from qwen_wsgi import logs, settings  # noqa: E402
from qwen_wsgi.errors import SettingsError  # noqa: E402

#: The exit code for settings that cannot work; the systemd unit does not restart after it.
_EXIT_BAD_SETTINGS: Final = 2

#: gunicorn's master kills a worker that is not gone by its own graceful timeout. Workers get this
#: much less, so that they can still write the calls that they cut into the ledger, and wait for a
#: renewal of a login that was sent (27 s at most): its answer exists nowhere else.
_WORKER_EXIT_S: Final = 30

#: A connection that was used within this time may have a request on its way.
_MIN_IDLE_S: Final = 0.1

#: Read of a client's socket at a time: a large body goes through memory that is in the cache.
_RECV_BYTES: Final = 64 * 1024

#: The socket class without gevent's waiting.
_blocking_socket: Final = monkey.get_original("socket", "socket")

try:
    _settings = settings.load()
except SettingsError as error:
    print(f"qwen-proxy: {error}", file=sys.stderr)
    sys.exit(_EXIT_BAD_SETTINGS)


def _raise_open_files_limit(needed: int) -> None:
    """A shell's usual soft limit of 1024 files is less than a worker's streams need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _writable(directory: str) -> str | None:
    return directory if os.path.isdir(directory) and os.access(directory, os.W_OK) else None


class ServerLog(Logger):
    """gunicorn's few lines in the form of the application's, so that one journal has one format."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        redaction = logs.Redaction((*_settings.all_client_keys, _settings.upstream_api_key))
        for handler in self.error_log.handlers:
            handler.setFormatter(logs.Formatter(_settings.log_format, redaction))


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
        if (services := _services(self)) is not None:
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


def _services(worker: Worker) -> Any:
    """What `create_app` made; None when the worker failed before it had loaded the application."""
    return getattr(getattr(worker, "wsgi", None), "extensions", {}).get("qwen_wsgi")


def post_fork(server: object, worker: Worker) -> None:
    """Give the worker its own, shorter graceful timeout; this is the worker's copy of `cfg`."""
    worker.cfg.set("graceful_timeout", _settings.graceful_timeout_s)


def post_worker_init(worker: Worker) -> None:
    """Begin the worker's own work, and print the banner once: not for a replaced worker."""
    # gunicorn looks up thirty settings per request, each through three calls; a plain attribute
    # costs none. After this the worker's settings do not change any more.
    vars(worker.cfg).update({name: each.get() for name, each in worker.cfg.settings.items()})
    # What is loaded now stays: without it a full collection stops a worker with 1000 streams for
    # 20 to 120 ms, and there would be one every few seconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    # Each spawn would note who spawned it and from where, for traces that nobody prints.
    gevent.config.track_greenlet_tree = False
    # Nobody prints them, and each record would ask for all of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if _services(worker) is not None:
        from qwen_wsgi.app import announce, started

        started(worker.wsgi)
        if worker.age == 1:
            announce(worker.wsgi)


def worker_exit(server: object, worker: Worker) -> None:
    """Let the services finish what must not be cut, e.g. a token refresh that was sent."""
    # gunicorn's master calls this too, for a worker that vanished: nothing there is ours to close.
    if str(worker.pid) == str(os.getpid()):
        close = getattr(_services(worker), "close", None)
        if close is not None:
            close()


bind = _settings.bind_address
# nginx connects through its group. The unit's RuntimeDirectory is closed to everybody else.
umask = 0o007
proc_name = "qwen-proxy"

workers = _settings.workers
worker_class = StreamWorker
worker_connections = _settings.worker_connections
_raise_open_files_limit(_settings.worker_files)
# The heartbeat file must not wait for a disk.
worker_tmp_dir = _writable("/dev/shm")

# Seconds after which a worker whose event loop stands still is killed. Streams do not count: a
# worker that waits for an upstream gives its sign of life all the same.
timeout = 30
graceful_timeout = _settings.graceful_timeout_s + _WORKER_EXIT_S
keepalive = _settings.client_keepalive_s

# As large as nginx passes on by default; API calls keep their data in the body.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190

# X-Forwarded-For is the application's business; this is only about the scheme of the request.
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
forwarded_allow_ips = ",".join(
    str(ipaddress.ip_network(peer, strict=False))
    for peer in _settings.trusted_proxies
    if peer != "unix"
)
# No header may set SCRIPT_NAME or PATH_INFO.
forwarder_headers = ""
http_protocols = "h1"
# One parser everywhere, whatever else is installed beside us.
http_parser = "python"
# A second way in, which nobody asked for.
control_socket_disable = True

# The application logs one line per call itself.
accesslog = None
logger_class = ServerLog
errorlog = "-"
loglevel = _settings.log_level.lower()
