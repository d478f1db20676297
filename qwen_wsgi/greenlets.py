"""What plain blocking code cannot say, and the only use of gevent in the package.

`watch_client` notices that a client went away while its call waits for the upstream; `Task` runs a
piece of blocking work so that its caller may wait in slices, and drop it at once; `in_order` runs
several of them. `Strand`, `Listener` and `lock` are for a connection with several calls at a time.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

import gevent
from gevent import monkey
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from qwen_wsgi.errors import CallCancelled, ClientGone

T = TypeVar("T")

#: Whether sockets let other greenlets run: in a worker, not in commands and unit tests. Without a
#: frame of Python's: each call asks twice.
are_in_use: Final = functools.partial(monkey.is_module_patched, "socket")

#: libev's and libuv's flag for "readable".
_READ: Final = 1


class _ClientGoneExit(ClientGone, gevent.GreenletExit):
    """gunicorn's gevent worker swallows a GreenletExit: the connection ends without a traceback."""


class CallCancelledExit(CallCancelled, gevent.GreenletExit):
    """As `_ClientGoneExit`: a client that takes nothing any more cannot be told either."""


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

    __slots__ = ("_greenlet", "_is_own", "_socket", "_watcher")

    def __init__(self, client: Any) -> None:
        self._socket = client
        self._greenlet: Any = gevent.getcurrent()
        shared: Any = getattr(client, "watcher", None)  # of the connection, for all its calls
        self._is_own = shared is None
        self._watcher: Any = watcher_of(client) if shared is None else shared
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        try:
            # The flag keeps a pipelined request in the socket for gunicorn's parser.
            gone = self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return
        except OSError:
            gone = True
        greenlet = self._greenlet
        # Bytes that stay unread would wake this watcher for ever; the next write notices then.
        self.stop()
        if gone:
            greenlet.throw(_ClientGoneExit("the client closed the connection"))

    def stop(self) -> None:
        # A greenlet keeps what it died of, whose frames may know this object.
        watcher, self._watcher, self._greenlet = self._watcher, None, None
        if watcher is not None:
            watcher.stop()
            if self._is_own:
                watcher.close()


def watcher_of(sock: socket.socket) -> Any:
    """The loop's watcher for bytes that can be read from a socket; whoever has it closes it."""
    return gevent.get_hub().loop.io(sock.fileno(), _READ)


def wait_for(watcher: Any) -> None:
    """Let others run until a watcher has something to tell."""
    gevent.get_hub().wait(watcher)


def watch_client(environ: Mapping[str, Any]) -> Watch:
    """Arm the watch for the WSGI request that the calling greenlet serves.

    Call it after the body was read (readable bytes are then an EOF or a pipelined request), and
    `stop()` it on every exit. Does nothing outside gunicorn's gevent worker, e.g. in unit tests.
    """
    client = environ.get("gunicorn.socket")
    if client is None or not are_in_use():
        return _NoWatch()
    return _ClientWatch(client)


@functools.cache
def _original_poll() -> Any:
    return monkey.get_original("select", "poll")


def readable_now(source: socket.socket) -> bool:
    """Whether something (or the end) can be read from a socket at once; asks the kernel and never
    switches greenlets."""
    poll = _original_poll()()
    poll.register(source.fileno(), _READ)  # POLLIN has the same value
    return bool(poll.poll(0))


def look_at(source: socket.socket) -> Callable[[], object]:
    """A function that says, each time that it is called, whether something (or the end) can be read
    from a socket at once. Without a frame of Python's, and without a switch of greenlets."""
    poll = _original_poll()()
    poll.register(source.fileno(), _READ)
    return functools.partial(poll.poll, 0)


def _tls_recv(tls: Any) -> Callable[[int], bytes]:
    """Reads of a TLS socket that never wait: gevent's start a watcher and a timer for each wait.

    As with gevent's, an end of the connection without TLS's own end is an end.

    Args:
        tls: what the standard library's socket has below itself.
    """
    read = tls.read

    def recv(size: int) -> bytes:
        try:
            data: bytes = read(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return data

    return recv


#: How long one source may be read without a pause for the others.
_FAIR_S: Final = 0.02


class TimedReads:
    """Reads of one socket, each broken off with a TimeoutError after `timeout_s` of silence.

    gevent's own socket makes, starts, stops and closes a timer and a waiter for every wait. Here
    one repeating timer serves them all, started anew by one C call, and one watcher stays armed,
    which together saves a quarter of what a chunk costs (benchmarks). After a read that did not
    fill its buffer the socket is empty, so the next one waits first instead of asking the kernel in
    vain. A source that always has more does not keep the loop for itself.

    One greenlet reads; `stop` on every exit. Without gevent's patching it is a socket timeout.

    Attributes:
        passing: takes what arrives while the reader waits, from the event loop, and says whether
            it was taken; what was not is the reader's. It must not wait, and what it raises is
            raised by the reader's `recv`. None: all of it is the reader's.
    """

    __slots__ = (
        "_again",
        "_armed",
        "_asked",
        "_empty",
        "_given",
        "_io",
        "_loop",
        "_park",
        "_parked",
        "_pending",
        "_reader",
        "_recv",
        "_ring",
        "_source",
        "_straight",
        "_timer",
        "_yielded_at",
        "passing",
        "timeout_s",
    )

    def __init__(self, source: socket.socket, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.passing: Callable[[bytes], bool] | None = None
        self._asked = 0
        self._given: bytes | Exception | None = None
        self._source: Any = source
        self._recv = source.recv
        self._reader: Any = None
        self._timer: Any = None
        self._io: Any = None
        if not are_in_use():
            source.settimeout(timeout_s)
            return
        source.settimeout(None)
        hub: Any = gevent.get_hub()
        self._loop: Any = hub.loop
        # A TLS socket may hold decrypted bytes that the kernel knows nothing of.
        known: Any = source
        tls: Any = known._sslobj if hasattr(source, "pending") else None
        self._pending: Callable[[], int] | None = None if tls is None else tls.pending
        self._straight: Any = known._sock.recv if tls is None else _tls_recv(tls)
        self._io = self._loop.io(source.fileno(), _READ)
        self._park = hub.switch
        self._armed = self._empty = self._parked = False
        self._yielded_at = time.monotonic()
        self._ring: Any = self._rings
        self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self._loop.timer(self.timeout_s, repeat=self.timeout_s)
        self._again: Any = self._timer.again
        self._timer.start(self._ring)

    def limit(self, timeout_s: float) -> None:
        """Change the time of silence; between two reads."""
        if timeout_s == self.timeout_s:
            return
        self.timeout_s = timeout_s
        if self._timer is None:
            self._source.settimeout(timeout_s)
            return
        self._timer.stop()
        self._timer.close()
        self._start_timer()

    def _rings(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.throw(TimeoutError())

    def _arrived(self) -> None:
        if self._parked:
            # No timer is started anew for what is passed on: a reader that is woken by one looks
            # itself when the last of it came.
            if self.passing is not None and self._is_passed(self.passing):
                return
            self._parked = False
            self._reader.switch()
        else:
            # The reader is busy, e.g. with a slow client: bytes that stay would ring for ever.
            self._io.stop()
            self._armed = False

    def _is_passed(self, passing: Callable[[bytes], bool]) -> bool:
        """Whether the reader need not be woken for what has arrived. Runs in the hub."""
        try:
            data: bytes = self._straight(self._asked)
            is_whole = self._pending is None or not self._pending()
            if data and is_whole and passing(data):
                return True
        except BlockingIOError:
            return True  # nothing has
        except Exception as error:
            self._given = error  # the hub would only print it
        else:
            self._given = data
        return False

    def recv(self, size: int) -> bytes:
        """As `socket.recv`.

        Raises:
            TimeoutError: nothing came, or nothing that was not passed on; the next call goes on
                waiting.
            OSError: as `socket.recv`.
        """
        if self._timer is None:
            return self._recv(size)
        self._again(self._ring, update=False)
        self._reader = gevent.getcurrent()
        try:
            return self._read(size)
        finally:
            self._reader = None
            self._parked = False

    def _read(self, size: int) -> bytes:
        self._asked = size
        while True:
            if self._empty:
                if not self._armed:
                    self._io.start(self._arrived)
                    self._armed = True
                self._parked = True
                self._park()
            try:
                data = self._straight(size) if self._given is None else self._take_given()
            except BlockingIOError:
                self._empty = True
                continue
            self._empty = len(data) < size and (self._pending is None or not self._pending())
            if not self._empty and time.monotonic() - self._yielded_at > _FAIR_S:
                self._reader = None  # what it has read must not be lost by a timeout
                let_others_run()
                self._yielded_at = time.monotonic()
            return data

    def _take_given(self) -> bytes:
        given, self._given = self._given, None
        if isinstance(given, Exception):
            try:
                raise given
            finally:
                del given  # its frames are this one and the hub's
        assert given is not None, "asked for without a look"
        return given

    def stop(self) -> None:
        """Free the timer; harmless when repeated."""
        for watcher in (self._io, self._timer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._io = self._timer = None
        # They know this object, and would keep it.
        self._ring = self._again = self.passing = self._given = None


class KeptReads(TimedReads):
    """Reads of a connection that serves one exchange after the other; between two of them they rest
    (`stop`), and nothing is made anew for the next (`begin`). `close` frees them."""

    __slots__ = ()

    def begin(self, timeout_s: float) -> None:
        """Be ready for an answer to what was just sent.

        Args:
            timeout_s: see `TimedReads`.
        """
        if self._timer is None:
            self.timeout_s = timeout_s
            self._source.settimeout(timeout_s)
            return
        if timeout_s != self.timeout_s:
            self.limit(timeout_s)
        # It cannot be there yet. What TLS holds decrypted the kernel does not know of.
        self._empty = self._pending is None

    def stop(self) -> None:
        """Rest; harmless when repeated."""
        if self._timer is not None:
            self._timer.stop()
            self._io.stop()
            self._armed = False
        self.passing = self._given = None

    def close(self) -> None:
        """Free the timer; harmless when repeated."""
        super().stop()


class Task(Generic[T]):
    """One function at work in a greenlet of its own.

    The starter waits for it in slices (so it can send keep-alives meanwhile) and either takes the
    result, once, or cancels. A result that was not taken is given to `discard`, so that a
    connection which opens in the very moment of the cancellation is not leaked.

    Without gevent's monkey patching (unit tests) the function runs to its end inside `wait`.
    """

    def __init__(self, work: Callable[[], T], *, discard: Callable[[T], None]) -> None:
        self._work: Callable[[], T] | None = work
        self._discard: Callable[[T], None] | None = discard
        self._done = self._taken = self._cancelled = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._waiter: Any = None
        # Not gevent's own greenlet, which looks at the frames that it is made by, and needs eight
        # functions to be waited for.
        self._greenlet: Any = gevent.spawn_raw(self._run)

    def _run(self) -> None:
        work, self._work = self._work, None
        is_wanted = not self._cancelled
        if work is not None and is_wanted:
            try:
                result = work()
            except BaseException as error:  # re-raised in take(), by whoever waits
                if not self._cancelled:
                    self._error = error
            else:
                if self._cancelled and self._discard is not None:
                    self._discard(result)
                self._result = result
        self._done = True
        if self._waiter is not None:
            gevent.get_hub().loop.run_callback(self._wake)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it ended, at most `timeout_s` seconds (None: for ever); whether it did."""
        if self._done:
            return True
        hub = gevent.get_hub()
        timer = None if timeout_s is None else hub.loop.timer(timeout_s)
        self._waiter = gevent.getcurrent()
        try:
            if timer is not None:
                timer.start(self._wake)
            while not (self._done or self._waiter is None):
                hub.switch()
        finally:
            self._waiter = None
            if timer is not None:
                timer.stop()
                timer.close()
        return self._done

    def _wake(self) -> None:
        # Runs in the hub, at the end of the work or of the time.
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.switch()

    def take(self) -> T:
        """The result or the function's exception, once. Only after `wait` was true."""
        self._taken = True
        self._greenlet = self._discard = None  # two kB, for as long as the stream lasts
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # its frames are this one and the task's: nothing may hold it there
        result, self._result = self._result, None
        return result  # type: ignore[return-value]  # set when there was no error

    def cancel(self) -> None:
        """Stop the work where it waits, and discard what it made; harmless when taken."""
        if self._taken or self._cancelled:
            return
        self._cancelled = True
        if self._done:
            if self._error is None and self._discard is not None:
                self._discard(self._result)  # type: ignore[arg-type]  # as above
            self._error = None
        else:
            # Not waited for: the caller may be on its way out with an exception of its own.
            throw_into(self._greenlet, self._ending)

    def _ending(self) -> BaseException | None:
        return None if self._done else gevent.GreenletExit()


class ThreadApart:
    """A thread for work that would stop the loop, while the loop serves other clients.

    It does one work at a time, and ends it also for a caller that has left, before it begins the
    next. The thread shares the interpreter with the loop: work in Python gets out of its way every
    five milliseconds, one call of C only when it is over, unless it gives up the interpreter as
    the system's and SQLite's do.

    Without gevent's monkey patching (unit tests, commands) the caller does the work itself.
    """

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None

    def __call__(self, work: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """Run some work, and wait for it.

        Args:
            timeout_s: how long it may take with the works before it. It goes on all the same.

        Raises:
            TimeoutError: it took longer.
            Exception: what the work raises.
        """
        if not are_in_use():
            return work()
        if self._pool is None:  # in this process: no thread survives a fork
            self._pool = ThreadPool(1)
        with gevent.Timeout(timeout_s, TimeoutError):
            found = self._pool.apply(functools.partial(_outcome, work))
        if isinstance(found, tuple):
            return found[0]
        try:
            raise found
        finally:
            del found  # its traceback has this frame, and they would keep the work's arguments


#: For long pure computations. Ten bodies of 60 MB that arrive together would otherwise be parsed in
#: one round of the loop, and all other clients would wait for the sum. One thread: two would share
#: the interpreter's lock, and hold twice as much memory.
apart: Final = ThreadApart()


def _outcome(work: Callable[[], T]) -> tuple[T] | Exception:
    """The result or the error of some work. gevent would print an error that leaves its thread,
    with the work's arguments: a refused body would be in the log, all of it."""
    try:
        return (work(),)
    except Exception as error:
        return error


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Break off what is done inside with a TimeoutError, if it takes longer.

    What has arrived while the loop was busy with something else is read first: the other side is
    not slow because we are. Does nothing without gevent's monkey patching.
    """
    if not are_in_use():
        yield
        return
    loop: Any = gevent.get_hub().loop
    worker: Any = gevent.getcurrent()
    timer, last = loop.timer(seconds), loop.timer(1e-4)
    # Between the two the loop looks at the sockets.
    timer.start(lambda: last.start(worker.throw, TimeoutError()))
    try:
        yield
    finally:
        for each in (timer, last):
            each.stop()
            each.close()


class InTurn:
    """Work that stops the loop for some milliseconds, and would in a thread as well, because it is
    one call of C. One such work is done in each round of the loop, so that what arrives on other
    sockets is seen between two of them."""

    def __init__(self) -> None:
        self._turn = BoundedSemaphore()

    def __call__(self, work: Callable[[], T]) -> T:
        """Do some work, when nobody else has in this round. Raises what it raises."""
        if not are_in_use():
            return work()
        with self._turn:
            try:
                return work()
            finally:
                let_others_run()


def let_others_run() -> None:
    """Let the loop run once, and see what has arrived on all sockets."""
    if are_in_use():
        # Of 0 the loop makes a callback, of which it runs up to 50 before it looks at a socket.
        gevent.sleep(1e-6)


def in_order(works: Iterable[Callable[[], T]], *, at_a_time: int) -> Iterator[T]:
    """The results of some work, in the order of the works, of which so many run at a time.

    The first failure in that order, and whatever ends the iteration early, stops those under way.
    """
    running: deque[Task[T]] = deque()
    try:
        for work in works:
            running.append(Task(work, discard=lambda result: None))
            if len(running) >= at_a_time:
                yield _next_of(running)
        while running:
            yield _next_of(running)
    finally:
        for task in running:
            task.cancel()


def _next_of(running: deque[Task[T]]) -> T:
    task = running[0]
    task.wait(None)
    running.popleft()
    return task.take()


class Strand:
    """A call at work in a greenlet of its own, which can be broken off wherever it waits.

    The work must handle its own failures.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._greenlet = gevent.spawn(work)

    def break_off(self, *, client_gone: bool) -> None:
        """Throw `ClientGone` into the work, or what gunicorn throws when the time for a stop is
        over. Does not wait; work that has not begun never does."""
        error = _ClientGoneExit("the client closed the connection")
        self._greenlet.kill(error if client_gone else gevent.GreenletExit(), block=False)

    @property
    def has_ended(self) -> bool:
        """Whether the work is over, or was broken off before it began."""
        return bool(self._greenlet.ready())

    @staticmethod
    def wait_for(strands: Iterable[Strand], timeout_s: float) -> None:
        """Wait for the end of several, at most for so long."""
        gevent.joinall([strand._greenlet for strand in strands], timeout=timeout_s)


def current() -> Any:
    """The greenlet that runs now, for `throw_into`."""
    return gevent.getcurrent()


def throw_into(greenlet: Any, error: Callable[[], BaseException | None]) -> None:
    """Throw an error into a greenlet wherever it waits. Does not wait for that.

    Args:
        greenlet: of this thread.
        error: makes it, when the greenlet is about to be woken; None: it is not to be thrown any
            more, because the greenlet does something else by now.
    """

    def throw() -> None:
        # Runs in the hub: the greenlet is parked in some wait, or has ended.
        if not greenlet.dead and (found := error()) is not None:
            greenlet.throw(found)

    gevent.get_hub().loop.run_callback(throw)


def later(work: Callable[[], None]) -> None:
    """Do some work soon, beside whoever asks for it, who does not wait.

    Without gevent's monkey patching (unit tests, commands) it is done at once.
    """
    if are_in_use():
        gevent.spawn(work)
    else:
        work()


class _Woken(Exception):
    """Ends a read that waits."""


class Listener:
    """Reads one socket; another greenlet can wake it.

    Args:
        source: with a timeout, which ends a read as well.
    """

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._reader: Any = None

    def recv(self, size: int) -> bytes | None:
        """As `socket.recv`; None for the timeout, and when `wake` was called meanwhile."""
        self._reader = gevent.getcurrent()
        try:
            return self._source.recv(size)
        except (TimeoutError, _Woken):
            return None
        finally:
            self._reader = None

    def wake(self) -> None:
        """End a read that waits now. A reader that does something else is left alone: it will look
        for itself before it reads again."""
        if self._reader is not None:
            gevent.get_hub().loop.run_callback(self._throw)

    def _throw(self) -> None:
        # Runs in the hub: a reader that is known now is parked in its read.
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.throw(_Woken())


def lock() -> contextlib.AbstractContextManager[Any]:
    """A lock among the greenlets of a thread."""
    return BoundedSemaphore(1)
