"""What gunicorn is given to run us: its worker, its client's socket, its log, and the banner.

Imported by `gunicorn.conf.py` alone, after gevent has patched the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker

from qwen_wsgi import logs
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.exchange import Answer, ClientParser, Surroundings
from qwen_wsgi.greenlets import let_others_run, wait_for, watcher_of
from qwen_wsgi.heads import Heads
from qwen_wsgi.redaction import DISCOVERED, Redaction
from qwen_wsgi.settings import Settings, with_command
from qwen_wsgi.state.database import in_use
from qwen_wsgi.state.database.sqlite import TooNew
from qwen_wsgi.state.database.tables import prepare

if TYPE_CHECKING:
    from qwen_wsgi.services import Services

log = logging.getLogger(__name__)

#: A connection that was used within this time may have a request on its way.
_MIN_IDLE_S: Final = 0.1

#: The same, where closing one that is used is worse than a wait.
_QUIET_S: Final = 1.0

#: How often a worker gives its sign of life.
_LOOK_S: Final = 1.0

#: What refusals that are under way at a worker's end may still take.
_REFUSAL_S: Final = 0.5

#: The bytes that a worker shares with the master: 1 when it accepts connections, and when it is to
#: refuse new calls.
_READY: Final = 0
_REFUSING: Final = 1
_SHARED_BYTES: Final = 2

#: Read of a client's socket at a time: a large body goes through memory that is in the cache.
_RECV_BYTES: Final = 64 * 1024

#: Read of a large body before others have their turn, unless it has to be waited for.
_EAGER_BYTES: Final = 512 * 1024

#: A request's body takes at most the time that it may pause (a setting), and its size at this rate:
#: a laptop that sleeps while it sends must not hold a place for hours. nginx reads bodies itself,
#: so this is for clients without one.
_SLOWEST_BYTES_PER_S: Final = 64_000

#: A client that reads nothing for so long is gone: what is written for it holds a place, too.
_WRITE_S: Final = 60.0

#: How long, and how much of, an unread body is taken from the network before the connection closes:
#: closed at once, the kernel would reset it, and the client might never see the answer.
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 << 20

#: The limit of connections is told so often.
_TELL_S: Final = 60.0

#: What a client that has gone away looks like.
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)

#: Signals that stop a worker.
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

#: The socket class without gevent's waiting.
_blocking_socket: Final = monkey.get_original("socket", "socket")


class ServerLog(Logger):
    """gunicorn's logger, which writes its few lines in the form of the application's.

    Attributes:
        settings: gunicorn.conf.py sets them, also at a reload, when gunicorn calls `setup` again.
    """

    settings: ClassVar[Settings]

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        settings = self.settings
        secrets = (*settings.all_client_keys, settings.upstream_api_key)
        redaction = Redaction(secrets, DISCOVERED)
        journal = logs.is_journal(settings.environ, sys.stderr)
        for handler in self.error_log.handlers:
            handler.setFormatter(logs.Formatter(settings.log_format, redaction, journal=journal))


class ClientSocket:
    """gevent's socket of a client, with cheaper writing: every chunk of every stream passes here.

    A write goes to the kernel directly, and to gevent only when the kernel's buffer is full:
    gevent's `sendall` asks for the socket's options each time. The head of a 2xx answer waits for
    the first piece of the body, so that both leave in one packet.

    Attributes:
        request: gunicorn's, while it is served; reads of its body are limited in time.
        answered: whether anything of its answer was sent.
        is_unread: its body was not read, and will not be.
        is_stopping: the server stops, and the rest of a body is not waited for.

    Args:
        body_timeout_s: how long a request's body may pause.
    """

    __slots__ = (
        "_body_timeout_s",
        "_eager_bytes",
        "_head",
        "_read_s",
        "_recv_into",
        "_send",
        "_sock",
        "_watcher",
        "answered",
        "deadline_s",
        "is_stopping",
        "is_unread",
        "request",
    )

    def __init__(self, sock: Any, body_timeout_s: float) -> None:
        self._sock = sock
        self._send = sock._sock.send
        self._recv_into = sock._sock.recv_into
        #: Read since others had their turn.
        self._eager_bytes = 0
        self._head = b""
        self._watcher: Any = None
        self._body_timeout_s = body_timeout_s
        self.is_stopping = False
        self.request: Any = None
        self.answered = self.is_unread = False
        #: Monotonic time by which the body has to be there; None before it is waited for.
        self.deadline_s: float | None = None
        #: When the last read of it ended.
        self._read_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def take_over(self) -> Any:
        """Give gevent's socket to a connection that is no HTTP any more; nothing is written here
        from now on."""
        self.answered = True
        return self._sock

    @property
    def watcher(self) -> Any:
        """Tells that something can be read: one for all calls of the connection."""
        if self._watcher is None:
            self._watcher = watcher_of(self._sock)
        return self._watcher

    def await_request(self) -> None:
        """Wait until something of the next request can be read. A read that finds nothing yet, as
        it does nearly always, would cost as much again as the one that follows."""
        wait_for(self.watcher)

    def end(self) -> None:
        """The connection is over, before it is closed."""
        if self._watcher is not None:
            self._watcher.close()

    def begin(self, request: Any) -> None:
        """A request is served from now on; None after it."""
        self.request, self.deadline_s, self._eager_bytes = request, None, 0
        self.answered = self.is_unread = False

    @property
    def waits_for_body(self) -> bool:
        """Whether the call waits for the rest of its body."""
        if self.request is None or self.deadline_s is None:
            return False
        reader = self.request.body.reader
        missing = reader.parser if isinstance(reader, ChunkedReader) else reader.length
        return bool(missing)

    def leave_unread(self) -> None:
        """Answer without having read the body: announce `Connection: close`, and close."""
        self.is_unread = self.request.must_close = True

    def sendall(self, data: bytes) -> None:
        self.answered = True
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith((b"HTTP/1.1 20", b"HTTP/1.0 20")):
            self._head = data
            return
        self._send_now(data)

    def send_whole(self, answer: bytes) -> None:
        """Send all of an answer, its head and its body."""
        self.answered = True
        self._send_now(answer)

    def _send_now(self, data: bytes) -> None:
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def sends_at_once(self) -> Callable[[bytes], int] | None:
        """The kernel's `send`, which never waits; None while a head waits for the first piece."""
        return None if self._head else self._send

    def _send_slowly(self, data: memoryview) -> None:
        """Send to a client that reads slower than we write.

        Raises:
            OSError: it took nothing for `_WRITE_S` seconds.
        """
        self._sock.settimeout(_WRITE_S)
        try:
            while data:
                data = data[self._sock.send(data) :]
        except TimeoutError:
            raise ConnectionResetError(
                errno.ECONNRESET, "the client reads nothing of its answer"
            ) from None
        finally:
            self._sock.settimeout(None)

    def recv(self, size: int, *flags: int) -> bytes:
        """gunicorn asks for all that is missing of a body, and the allocator for as much memory.

        Raises:
            TimeoutError: the body of a request does not come in time.
            ConnectionAbortedError: the server stops before the body is there.
        """
        size = min(size, _RECV_BYTES)
        if self.request is None:
            return self._sock.recv(size, *flags)  # type: ignore[no-any-return]
        left_s = self._left_s()
        self._sock.settimeout(left_s)
        try:
            data: bytes = self._sock.recv(size, *flags)
        finally:
            self._sock.settimeout(None)
            self._read_s = time.monotonic()
        if not data and self.is_stopping:
            raise ConnectionAbortedError("the server is stopping")
        if self.deadline_s and self.request.body.reader.__class__ is ChunkedReader:
            self.deadline_s += len(data) / _SLOWEST_BYTES_PER_S  # its size is known at its end
        return data

    def recv_into(self, memory: memoryview) -> int:
        """As `recv`, into the memory of a body of known length: what is there is read at once, and
        gevent is asked only to wait. A fast client, whose socket always has more, lets others run
        now and then."""
        if self._eager_bytes >= _EAGER_BYTES:
            self._eager_bytes = 0
            let_others_run()
        left_s = self._left_s()
        try:
            count: int = self._recv_into(memory)
            self._eager_bytes += count
        except BlockingIOError:
            self._eager_bytes = 0
            self._sock.settimeout(left_s)
            try:
                count = self._sock.recv_into(memory)
            finally:
                self._sock.settimeout(None)
        self._read_s = time.monotonic()
        if not count and self.is_stopping:
            raise ConnectionAbortedError("the server is stopping")
        return count

    def _left_s(self) -> float:
        """How long a read of the body may wait.

        Raises:
            TimeoutError: the time for the body is over.
        """
        now_s = time.monotonic()
        if self.deadline_s is None:
            seconds = _length_of(self.request) / _SLOWEST_BYTES_PER_S
            self.deadline_s = now_s + self._body_timeout_s + seconds
        else:
            # An upload waits for a slow upstream in between: that is not the client's time.
            self.deadline_s += now_s - self._read_s
        left_s = min(self._body_timeout_s, self.deadline_s - now_s)
        if left_s <= 0:
            raise TimeoutError("the body is too slow")
        return left_s

    def flush(self) -> None:
        """Send a head that no body followed; a client that is gone will be noticed elsewhere."""
        if self._head:
            data, self._head = self._head, b""
            with contextlib.suppress(OSError):
                self._sock.sendall(data)

    def linger(self) -> None:
        """Take what the client still sends, for a while, so that it sees its answer."""
        left, end_s = _LINGER_BYTES, time.monotonic() + _LINGER_S
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while left > 0 and (left_s := end_s - time.monotonic()) > 0:
                self._sock.settimeout(left_s)
                data = self._sock.recv(_RECV_BYTES)
                if not data:
                    return
                left -= len(data)


def _length_of(request: Any) -> int:
    """The declared length of a request's body; 0 where there is none."""
    return next((int(v) for name, v in request.headers if name == "CONTENT-LENGTH"), 0)


def hold_signals() -> None:
    """For gunicorn's hook before it forks a worker: no signal that stops it is lost on the way.

    Between the fork and the worker's own signal handlers, gunicorn's master has its handler in the
    child, which notes a signal for the master's loop that does not run there. A stop within that
    time, some milliseconds or on a busy machine a second, would wait for a worker that has never
    heard of it, until it is killed after `graceful_timeout`. So the signals wait in the kernel.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    _release_signals_after_fork()


@functools.cache
def _release_signals_after_fork() -> None:
    """Once, in the master: it handles signals again as soon as the child is there."""
    master = os.getpid()

    def release() -> None:
        if os.getpid() == master:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    os.register_at_fork(after_in_parent=release)


class Door(StreamServer):
    """gevent's server, which can be told to accept nothing for a while.

    Left to itself it begins to accept again as soon as a connection of its pool ends.
    """

    _is_open = True

    def accept(self, wanted: bool) -> None:
        """Accept connections, or leave them to others. Harmless when repeated."""
        self._is_open = wanted
        if wanted:
            self.start_accepting()
        else:
            self.stop_accepting()

    def start_accepting(self) -> None:
        if self._is_open:
            super().start_accepting()


class StreamWorker(GeventWorker):
    """gunicorn's gevent worker, with an end that loses no call that it need not lose.

    A worker whose successor serves takes no new connections, and goes when those that it has are
    done: each is closed with the answer to its next request, or after a second without one. So does
    a worker of a server that stops while systemd keeps the socket. Any other stop refuses what is
    new with 503 as long as open calls last, and closes idle connections at once.

    A connection between two requests would hold up gunicorn's own graceful stop until its
    keep-alive time is over, and every official SDK keeps such connections. Here the reading half of
    an idle one is shut, so that the parser, which waits for a request, sees the end. A request that
    is there already is answered. A head of which a part is there is lost; they come in one piece.

    Attributes:
        is_old: the master's note that another one is to take its place.
        is_sent_off: the master's note that it was told to go.
        tells: it is the first one with new settings, and tells the log what is odd about them.
    """

    #: How long a request's body may pause; gunicorn.conf.py sets what the settings say.
    body_timeout_s: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_old = self.is_sent_off = self.tells = False
        #: Shared with the master: made by it, before the fork.
        self._shared = mmap.mmap(-1, _SHARED_BYTES)
        #: Connections that wait for a request, each with the time since when.
        self._waiting: dict[Any, float] = {}
        self._clients: set[ClientSocket] = set()
        self._heads = Heads()
        #: Those that came after the stop had begun, or whose request did: it is being refused.
        self._refused: set[Any] = set()
        self._told_s = -_TELL_S
        self._signalled = Event()

    # --- what master and worker tell each other ---------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether it accepts connections."""
        return bool(self._shared[_READY])

    def refuse(self) -> None:
        """Of the master, before the signal: the whole server stops, and nobody serves new calls.
        Without it they are others' business."""
        self._shared[_REFUSING] = 1

    @property
    def _refuses(self) -> bool:
        return bool(self._shared[_REFUSING])

    # --- life -------------------------------------------------------------------------------------

    def init_signals(self) -> None:
        super().init_signals()
        # What came since the fork (see `hold_signals`) is handled now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    def run(self) -> None:
        servers = [self._serve(listener) for listener in self.sockets]
        self._shared[_READY] = 1
        while self.alive:
            self.notify()
            self._signalled.wait(_LOOK_S)
            self._shut_silent()
        self._end(servers)
        if (services := services_of(self)) is not None:
            # Responses that nobody waits for may go on as long as streams. A worker that gives no
            # sign of life for gunicorn's `timeout` would be killed.
            services.background.stop(self.notify)

    def _serve(self, listener: Any) -> Door:
        """Accept connections, as gunicorn's worker does."""
        listener.setblocking(1)
        pool = Pool(self.worker_connections)
        server = Door(listener, handle=functools.partial(self.handle, listener), spawn=pool)
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _end(self, servers: list[Door]) -> None:
        """Let what is open finish, within the graceful timeout; then break it off."""
        end_s = time.monotonic() + self.cfg.graceful_timeout
        self._begin_end()
        while time.monotonic() < end_s and self._has_calls():
            for server in servers:
                server.accept(self._refuses)  # another signal may have changed it
            self._shut_idle()
            self.notify()
            gevent.sleep(_MIN_IDLE_S)
        in_time = not self._has_calls()
        for server in servers:
            server.close()
        if in_time:
            for client in list(self._waiting):
                self._shut(client)
            for server in servers:
                cast(Pool, server.pool).join(timeout=_REFUSAL_S)
        else:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
        for server in servers:
            # Whatever is still open gets an exception, of which its client is told.
            server.stop(timeout=0 if in_time else 1)

    def _begin_end(self) -> None:
        """Tell the application. Its answers close their connections from now on."""
        services = services_of(self)
        if services is not None:
            services.admission.draining = self._refuses
            services.background.drain()
            services.connections.stop()

    def _has_calls(self) -> bool:
        """Whether something is open that the end has to wait for."""
        return any(client not in self._refused for client in self._clients)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        # A TLS socket (only if somebody configures gunicorn so) must encrypt what it sends.
        if hasattr(client, "pending"):
            super().handle(listener, client, addr)
            return
        client.setblocking(1)
        sock = ClientSocket(client, self.body_timeout_s)
        self._clients.add(sock)
        if len(self._clients) >= self.worker_connections:
            self._tell_limit()
        if not self.alive and self._refuses:
            self._refused.add(sock)
        try:
            self._serve_requests(sock, addr, listener.getsockname())
        except OSError as error:
            if error.errno not in _GONE:
                self.log.exception("Socket error processing request.")
        finally:
            self._clients.discard(sock)
            self._waiting.pop(sock, None)
            self._refused.discard(sock)
            sock.end()
            util.close(client)

    def _serve_requests(self, sock: ClientSocket, peer: Any, listener: Any) -> None:
        """Answer the requests of a connection, one after the other, until it is to be closed.

        Raises:
            OSError: the client has closed it, or its answer was cut.
        """
        parser = ClientParser(self.cfg, sock, peer, self._heads)
        surroundings = Surroundings(sock, peer, listener, workers=self.cfg.workers)
        request = None
        try:
            while True:
                request = None
                # How long it may wait: `_shut_silent` looks at all connections together.
                self._waiting[sock] = time.monotonic()
                request = next(parser)
                del self._waiting[sock]
                if not self._answer(request, sock, surroundings):
                    return
        except (StopIteration, NoMoreData, gevent.GreenletExit):
            return  # it was closed between two requests, or within the head of one
        except OSError:
            raise
        except BaseException as error:
            self.handle_error(request, sock, peer, error)

    def _answer(self, request: Any, sock: ClientSocket, surroundings: Surroundings) -> bool:
        """Answer one request; whether the connection is kept for more."""
        sock.begin(request)
        if not self.alive and self._refuses:
            self._refused.add(sock)  # it was open before
        written: Any = sock  # a socket to gunicorn
        answer, environ = Answer(request, written, self.cfg), surroundings.of(request)
        answer.offer_passage(environ)
        try:
            self._run_application(answer, environ)
        except (gevent.GreenletExit, SystemExit):
            request.must_close = True  # its client is gone, or the graceful timeout is over
        except OSError:
            raise
        except Exception:
            if not answer.headers_sent:
                raise
            # An error page in the middle of an answer would be taken for a part of it.
            self.log.exception("Error handling request")
            request.must_close = True
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        finally:
            free_call(environ)
            if not sock.answered and not self.alive:
                # The call was ended without a word, at the end of the graceful timeout.
                request.must_close = True
                _write_json(sock, 503, "Service Unavailable", _STOPPED)
            sock.flush()
            if sock.is_unread:
                sock.linger()
            sock.begin(None)
        return not answer.should_close()

    def _run_application(self, answer: Answer, environ: dict[str, Any]) -> None:
        if not self.alive or not self.cfg.keepalive:
            answer.force_close()
        request: Any = answer.req
        if request._expected_100_continue:
            answer.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        application: Any = self.wsgi  # it passes no `exc_info`
        body = application(environ, answer.start_response)
        try:
            for piece in body:
                answer.write(piece)
            answer.close()
        finally:
            if hasattr(body, "close"):
                body.close()

    def _tell_limit(self) -> None:
        """Log that further connections wait, once a minute."""
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self.log.warning(
                "this worker has %d connections, which is its limit: further clients wait. "
                "QWEN_PROXY_WORKERS or QWEN_PROXY_MAX_IN_FLIGHT raises it.",
                len(self._clients),
            )

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request in JSON, as every other failure."""
        answers: Any = _JsonErrors(client)  # a socket to gunicorn
        super().handle_error(req, answers, addr, exc)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if (services := services_of(self)) is not None:
            # Now, and not when the loop looks next.
            services.admission.draining = self._refuses
        # In a greenlet, as in gunicorn's handle_quit: a signal handler must not touch the loop.
        gevent.spawn(self._signalled.set)

    def _shut_idle(self) -> None:
        """Shut connections between two requests; not those that were used just now, whose next
        request may be on its way."""
        quiet_s = _MIN_IDLE_S if self._refuses else _QUIET_S
        latest = time.monotonic() - quiet_s
        self._shut_waiting(latest)
        if not self._refuses:
            return  # a body that is on its way is a call that is to be served
        for reading in [client for client in self._clients if client.waits_for_body]:
            reading.is_stopping = True
            self._shut(reading)

    def _shut_silent(self) -> None:
        """Shut connections on which no request, or not all of its head, came for gunicorn's
        `keepalive`. One look a second: a timer of their own would be made for each request."""
        if self.cfg.keepalive:
            self._shut_waiting(time.monotonic() - self.cfg.keepalive)

    def _shut_waiting(self, since_s: float) -> None:
        """Shut those that have waited since then."""
        for client in [client for client, since in self._waiting.items() if since <= since_s]:
            self._shut(client)

    @staticmethod
    def _shut(client: Any) -> None:
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


class _JsonErrors:
    """A client's socket for gunicorn's own error pages, which become JSON of OpenAI's form."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sendall(self, page: bytes) -> None:
        first = page.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        status, reason = int(first[1]), first[2]
        _write_json(self._client, status, reason, f"The request could not be read: {reason}.")


#: For a call that waits for its whole answer when the server stops.
_STOPPED: Final = "The server is stopping. Please try again shortly."


def _write_json(client: Any, status: int, reason: str, message: str) -> None:
    """Send an error in OpenAI's form, where no Flask is left to do it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if status == 503:
        head += "Retry-After: 1\r\n"
    with contextlib.suppress(OSError):
        client.sendall(head.encode() + b"\r\n" + body)


def free_call(environ: dict[str, Any]) -> None:
    """Free what the call of a request holds, if that was not done: it is over, whatever failed."""
    # Of api/lifecycle.py. Taken out: the call knows its environ, and they would hold each other
    # until the garbage collector's next full round.
    call = environ.pop("qwen_wsgi.call", None)
    if call is not None and not call.closed:
        call.close()


def free_call_after(worker: object, request: object, environ: dict[str, Any], _: object) -> None:
    """`free_call` for gunicorn's `post_request`: of connections that it serves itself."""
    free_call(environ)


def prepare_state(settings: Settings) -> None:
    """Bring what an older version has stored forward; in the master, before there are workers. From
    now on, until all of them have ended, nobody restores a backup.

    Raises:
        SettingsError: a newer version of the proxy has written it.
        CannotStartYet: it is being restored now.
    """
    state_dir = Path(settings.state_dir)
    try:
        with contextlib.suppress(OSError):  # what is wrong with the directory, `prepare` tells
            in_use.hold(state_dir)
        prepare(state_dir, SystemClock())
    except TooNew as error:
        raise SettingsError(str(error)) from error
    except in_use.InUse:
        raise CannotStartYet(
            f"cannot use {settings.state_dir}: a backup is being restored there"
        ) from None


def services_of(worker: Worker) -> Services | None:
    """What `create_app` made; None when the worker failed before it had loaded the application."""
    found: Services | None = getattr(getattr(worker, "wsgi", None), "extensions", {}).get(
        "qwen_wsgi"
    )
    return found


def announce(worker: Worker, *, banner: bool) -> None:
    """Tell from a thread what is odd about the settings; and once the model lists are known, that
    the server is ready.

    Fetching them here also spares the first call that wait. Nothing is told for a worker that
    failed before it had loaded the application.
    """
    if (services := services_of(worker)) is not None:
        application: Any = worker.wsgi
        args = (services, application.endpoints() if banner else None)
        threading.Thread(target=_announce, args=args, daemon=True).start()


def _announce(services: Services, endpoints: list[str] | None) -> None:
    # Imported here, in the worker: the master loads this module, and a reload must find new code.
    from qwen_wsgi import text

    settings = services.settings
    if weak := settings.weak_client_keys:
        log.warning(
            "%d of the client keys can be guessed, because they are short or common words. Make "
            "others with `openssl rand -hex 24`.",
            weak,
        )
    if services.price_problem:
        log.warning("%s", services.price_problem)
    for note in services.discovery.notes():
        log.warning("%s", with_command(str(note), settings.command))
    if endpoints is None:
        for problem in services.discovery.problems():
            log.warning("%s", with_command(problem, settings.command))
        return
    accounts = services.pool.accounts()
    # Asked for now: a list of the server before this one may be an hour old.
    models = services.catalogue.models(refresh=True)
    problems = services.discovery.problems()
    statuses = {account.name: services.statuses.of(account) for account in accounts}
    guard = services.guard
    keys = guard.count_keys() if guard.needs_key else None
    if settings.log_format == "json":
        # Whoever reads the log expects an object in every line.
        fields = text.ready(settings, accounts, models, problems, statuses, keys=keys)
        log.info("ready", extra={"fields": fields})
    else:
        banner = text.banner(settings, accounts, models, problems, endpoints, statuses, keys=keys)
        print(banner, file=sys.stderr, flush=True)
