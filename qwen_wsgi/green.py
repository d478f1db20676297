"""The two things that plain blocking code cannot say, and the only use of gevent in the package.

`watch_client` notices that a client went away while its call waits for the upstream; `Task` runs a
piece of blocking work so that its caller may wait in slices, and drop it at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

import gevent
from gevent import monkey

from qwen_wsgi.errors import ClientGone

T = TypeVar("T")

#: libev's and libuv's flag for "readable".
_READ: Final = 1


class _ClientGoneExit(ClientGone, gevent.GreenletExit):
    """gunicorn's gevent worker swallows a GreenletExit: the connection ends without a traceback."""


class Watch(Protocol):
    """Something that is armed until it is stopped."""

    def stop(self) -> None:
        """Disarm; harmless when repeated."""


class _NoWatch:
    def stop(self) -> None:
        return None


class _ClientWatch:
    """Throws `ClientGone` into the greenlet that armed it, once its client closed the connection.

    Plain gevent notices a closed client only at the next write, so that a thinking model would
    burn quota for minutes. One libev watcher on the client's socket costs 16 µs a request and
    acts within a millisecond (measured, see docs/decisions). The callback runs in the hub, while
    the greenlet is parked in some wait; the wait raises.
    """

    __slots__ = ("_greenlet", "_socket", "_watcher")

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        self._greenlet = gevent.getcurrent()
        self._watcher: Any = gevent.get_hub().loop.io(client.fileno(), _READ)
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        try:
            # The flag keeps a pipelined request in the socket for gunicorn's parser.
            gone = self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return
        except OSError:
            gone = True
        # Bytes that stay unread would wake this watcher for ever; the next write notices then.
        self.stop()
        if gone:
            self._greenlet.throw(_ClientGoneExit("the client closed the connection"))

    def stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()


def watch_client(environ: Mapping[str, Any]) -> Watch:
    """Arm the watch for the WSGI request that the calling greenlet serves.

    Call it after the body was read (readable bytes are then an EOF or a pipelined request), and
    `stop()` it on every exit. Does nothing outside gunicorn's gevent worker, e.g. in unit tests.
    """
    client = environ.get("gunicorn.socket")
    if client is None or not monkey.is_module_patched("socket"):
        return _NoWatch()
    return _ClientWatch(client)


class Task(Generic[T]):
    """One function at work in a greenlet of its own.

    The starter waits for it in slices (so it can send keep-alives meanwhile) and either takes the
    result, once, or cancels. A result that was not taken is given to `discard`, so that a
    connection which opens in the very moment of the cancellation is not leaked.

    Without gevent's monkey patching (unit tests) the function runs to its end inside `wait`.
    """

    def __init__(self, work: Callable[[], T], *, discard: Callable[[T], None]) -> None:
        self._work = work
        self._discard = discard
        self._done = False
        self._taken = False
        self._cancelled = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # re-raised in take(), by whoever waits
            self._error = error
        else:
            if self._cancelled:
                self._discard(result)
            self._result = result
        self._done = True

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it ended, at most `timeout_s` seconds (None: for ever); whether it did."""
        if not self._done:
            self._greenlet.join(timeout_s)
        return self._done

    def take(self) -> T:
        """The result, or the exception that the function raised. Only after `wait` was true."""
        if self._error is not None:
            raise self._error
        self._taken = True
        return self._result  # type: ignore[return-value]  # set when there was no error

    def cancel(self) -> None:
        """Stop the work where it waits, and discard what it made; harmless when taken."""
        if self._taken or self._cancelled:
            return
        self._cancelled = True
        if self._done:
            if self._error is None:
                self._discard(self._result)  # type: ignore[arg-type]  # as above
        else:
            # Not waited for: the caller may be on its way out with an exception of its own.
            self._greenlet.kill(block=False)
