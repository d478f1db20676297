"""The sandbox's server: one accept thread, one thread per connection, loopback only.

It uses only blocking sockets and threads, so that it also runs in a gevent-patched process, where
each thread is a greenlet.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from qwen_wsgi.sandbox import console, pages, routes
from qwen_wsgi.sandbox.batches import Batches
from qwen_wsgi.sandbox.control import ROUTES, Control, Knobs
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.files import Storage
from qwen_wsgi.sandbox.journal import Journal, Record
from qwen_wsgi.sandbox.models import DEFAULT_MODELS
from qwen_wsgi.sandbox.native.media import Media
from qwen_wsgi.sandbox.oauth import OAuth
from qwen_wsgi.sandbox.steps import Player, Uncounted, whole_json
from qwen_wsgi.sandbox.web.site import Site
from qwen_wsgi.sandbox.wire import Connection, Malformed, PeerGone, Request
from qwen_wsgi.sandbox.world import World

_BACKLOG: Final = 1024
_STOP_TIMEOUT_S: Final = 5.0
# Bodies of these routes contain no secret; those of the OAuth routes contain refresh tokens.
_KEPT_BODIES: Final = frozenset(ROUTES) - {
    "device",
    "token",
    "tasks",
    "results",
    "uploads",
    "storage",
    "files",
    "batches",
    "web-auth",
    "web-object",
}
# client_id of the qwen-code CLI, which is public.
_CLI_CLIENT_ID: Final = "f0304373b74a44d2b584a3fb70ca9e56"


_Held = TypeVar("_Held", Connection, socket.socket)


class Sandbox:
    """A fake Qwen service on a loopback port.

    Thread-safe. `start` binds; after `stop` another `start` binds the same port again, which
    simulates an outage: as long as this object lives, the system gives the port to no other server.
    As a context manager it starts and stops itself.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        chunk_interval_s: float = 0.0,
        models: Sequence[str] | None = None,
        keep_alive_s: float = 75.0,
        private: bool = False,
    ) -> None:
        """Prepare, without opening anything.

        Args:
            port: 0 lets the system choose.
            clock: epoch seconds, for token lifetimes and `created`; delays always use real time.
            chunk_interval_s: pause between the events of a stream, for human viewers.
            models: ids that `GET models` lists; None means a default list of real ids.
            keep_alive_s: an idle connection is closed after that many seconds.
            private: for a server that people use: no prompt is kept, and web pages are refused, as
                are names of this machine that another site may have made.

        Raises:
            ValueError: `host` is not a loopback address.
        """
        self._host = _loopback(host)
        self._port = port
        self._keep_alive_s = keep_alive_s
        self._private = private
        listed = DEFAULT_MODELS if models is None else tuple(models)
        oauth = OAuth(clock, lambda: self.origin)
        control = Control(oauth, lambda: Knobs(models=listed, interval_s=chunk_interval_s))
        storage = Storage(clock)
        self._world = World(
            clock,
            lambda: self.origin,
            oauth,
            control,
            Journal(),
            Media(clock, lambda: self.origin),
            storage,
            Batches(clock, storage),
            Site(clock),
        )
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._port_is_kept = False
        self._threads: dict[threading.Thread, Connection | socket.socket] = {}
        self._stopping = threading.Event()

    @property
    def origin(self) -> str:
        """`http://host:port`, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def base_url(self) -> str:
        """The base URL for OpenAI clients."""
        return self.origin + "/compatible-mode/v1"

    @property
    def web(self) -> Site:
        """The users and chats of the web API, whose base URL is `origin`."""
        return self._world.web

    @property
    def requests(self) -> tuple[Record, ...]:
        """The last 1000 requests, except control calls."""
        return self._world.journal.records()

    @property
    def chats(self) -> tuple[Record, ...]:
        """The chat completions among the last requests."""
        return tuple(record for record in self.requests if record.route == "chat")

    def start(self) -> Sandbox:
        """Bind and serve in background daemon threads; return self.

        Raises:
            OSError: the port is in use.
        """
        listener = _bound(self._host, self._port)
        try:
            self._port = listener.getsockname()[1]
            self._keep_port()
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._stopping.clear()
        self._listener = listener
        self._spawn(self._accept, listener)
        return self

    def stop(self) -> None:
        """Close the port and all connections and wait for the threads. May be called twice."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        # Closing a socket does not wake a thread in its accept(); a last connection does.
        with suppress(OSError):
            socket.create_connection((self._host, self._port), timeout=1.0).close()
        self._join(listener, deadline_s)
        with self._lock:
            connections = [held for held in self._threads.values() if isinstance(held, Connection)]
        for connection in connections:
            connection.abort()
            self._join(connection, deadline_s)
        listener.close()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def control(
        self, payload: Mapping[str, Any] | None = None, /, **changes: Any
    ) -> dict[str, Any]:
        """Do what `POST /_sandbox/control` does.

        Raises:
            BadControl: a key or value is invalid; nothing was changed.
        """
        return self._world.control.apply({**(payload or {}), **changes})

    def reset(self) -> None:
        """Do what `POST /_sandbox/reset` does: clear settings, tokens, counters and log."""
        console.reset(self._world)

    def state(self) -> dict[str, Any]:
        """Return the answer of `GET /_sandbox/state`."""
        return console.state(self._world)

    def issue(self, client_id: str = _CLI_CLIENT_ID) -> dict[str, Any]:
        """Return a new token answer, as after a login."""
        return self._world.oauth.issue(client_id)

    def wait_until(self, reached: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        """Wait until `reached()` is true; False after the timeout."""
        return self._world.journal.wait_until(reached, timeout_s)

    def settle(self, timeout_s: float = 5.0) -> tuple[Record, ...]:
        """Wait until no request is in progress and return the log.

        A client gets its answer a moment before the request's record is closed.
        """
        self.wait_until(lambda: all(r.outcome != "open" for r in self.requests), timeout_s)
        return self.requests

    # --- threads ----------------------------------------------------------------------------------

    def _keep_port(self) -> None:
        """Hold the port by a second socket, which never listens, until this object is gone.

        Else a server of another process may get it during an outage, and answer in our place.
        """
        if not self._port_is_kept:
            self._port_is_kept = True
            weakref.finalize(self, _bound(self._host, self._port).close)

    def _spawn(self, work: Callable[[_Held], None], held: _Held) -> None:
        """Run `work(held)` in a new thread."""
        thread = threading.Thread(target=self._run, args=(work, held), name="sandbox", daemon=True)
        with self._lock:
            self._threads[thread] = held
        thread.start()

    def _join(self, held: Connection | socket.socket, deadline_s: float) -> None:
        """Wait for the thread that works on `held`."""
        with self._lock:
            threads = [thread for thread, work in self._threads.items() if work is held]
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self, work: Callable[[_Held], None], held: _Held) -> None:
        try:
            work(held)
        except Exception:
            # Noted here: a thread's exception would be printed into the product's log.
            self._world.journal.failed(traceback.format_exc())
        finally:
            with self._lock:
                self._threads.pop(threading.current_thread(), None)

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                sock, _address = listener.accept()
            except OSError:
                if self._stopping.is_set():
                    return
                time.sleep(0.05)  # probably out of file descriptors: let some connections end
                continue
            connection = Connection(sock)
            if self._stopping.is_set():
                connection.close()
                return
            self._world.journal.connected()
            try:
                self._spawn(self._serve, connection)
            except RuntimeError:  # no more threads are available
                connection.close()

    def _serve(self, connection: Connection) -> None:
        try:
            while not self._stopping.is_set() and self._serve_one(connection):
                pass
        except PeerGone:
            pass
        finally:
            connection.close()

    def _serve_one(self, connection: Connection) -> bool:
        """Answer the next request of a connection; whether another one may follow."""
        try:
            request = self._read(connection)
        except Malformed as error:
            refusal = Refusal(
                error.status, "bad_request", f"[sandbox] {error}", "invalid_request_error"
            )
            steps = whole_json(error.status, refusal.body())
            Player(connection, Uncounted(), close_after=True).play(steps)
            return False
        if request is None:
            return False
        if self._private and (why := pages.refused(request)):
            refusal = Refusal(403, "page_refused", f"[sandbox] {why}", "permission_error")
            steps = whole_json(403, refusal.body())
            Player(connection, Uncounted(), close_after=True).play(steps)
            return False
        route = routes.route_of(request)
        if route in ("control", "page"):
            return self._play(connection, request, None)
        keep_body = route in _KEPT_BODIES and not self._private
        record = self._world.journal.open(request, route, keep_body=keep_body)
        return self._play(connection, request, record)

    def _read(self, connection: Connection) -> Request | None:
        """The next request; without its body where an upload is to be refused early."""
        head = connection.read_head(self._keep_alive_s)
        if head is None:
            return None
        if routes.route_of(head) != "files" or head.method != "POST":
            return connection.read_body(head, upload=False)
        spec = self._world.control.knobs.faults.get("files", Spec())
        if "early" in spec:
            return replace(head, headers=(*head.headers, ("connection", "close")))
        return connection.read_body(head, upload=True, pace_s=spec.number("slow-body"))

    def _play(self, connection: Connection, request: Request, record: Record | None) -> bool:
        journal = self._world.journal
        player: Player | None = None
        gone_s: float | None = None
        outcome = "failed"
        try:
            reply = routes.respond(self._world, request, record)
            player = Player(
                connection,
                record or Uncounted(),
                http10=request.version == "HTTP/1.0",
                close_after=request.wants_close or "close" in reply.spec,
                split_bytes=reply.spec.count("split"),
                headers=reply.headers,
                on_head=(lambda: journal.first_byte(record)) if record else None,
            )
            try:
                player.play(reply.steps)
                outcome = player.outcome
            finally:
                if isinstance(reply.steps, Generator):
                    reply.steps.close()  # if it was abandoned, it must still count itself as ended
        except PeerGone as gone:
            outcome, gone_s = (
                ("stopped", None) if self._stopping.is_set() else ("client_gone", gone.at_s)
            )
            return False
        finally:
            if record is not None:
                journal.close(record, outcome, gone_s)
        return player.keep_alive


def _loopback(host: str) -> str:
    """Return the address to bind; refuse any that other machines could reach."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"the sandbox listens only on loopback, not on {host!r}: it accepts any key, and "
            "anybody who reaches it can control it; use 127.0.0.1"
        )
    return address


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound to the port, or to a free one. Two may share a port until one listens."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
