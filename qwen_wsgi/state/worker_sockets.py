"""Questions between the processes of one box: each worker answers on a unix socket of its own.

What a worker knows and nobody writes down, such as its calls in flight, is asked for when somebody
wants it, so that it costs a call nothing. The sockets are in the state directory, for the server's
user alone. A process that was killed answers nobody from that moment on: who meets its socket
removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from qwen_wsgi.greenlets import in_order
from qwen_wsgi.protocol.json_object import encoded, loads
from qwen_wsgi.state.workers import this_worker

log = logging.getLogger(__name__)

#: Below the state directory.
DIRECTORY: Final = "sockets"
_SUFFIX: Final = ".sock"

#: How long a worker has for an answer. One whose loop stands still for longer is left out.
ANSWER_S: Final = 1.0
#: Of a question, and of an answer. Bytes.
_LARGEST_QUESTION: Final = 4096
_LARGEST_ANSWER: Final = 4 * 1024 * 1024
#: Twice the most workers: after a reload the old ones go on for a while.
_MOST: Final = 512
_AT_A_TIME: Final = 16
_BACKLOG: Final = 64
#: The pause after an `accept` that failed, as it does without a free file.
_PAUSE_S: Final = 0.2
_PIECE: Final = 65_536

Question = Mapping[str, Any]


class Asked(NamedTuple):
    """What other workers have answered.

    Attributes:
        answers: of those that did.
        silent: how many did not in time; they may know something.
    """

    answers: tuple[Any, ...]
    silent: int


class WorkerSocket:
    """This process's own socket.

    Args:
        state_dir: None has none, as of commands and of tests.
        answer: answers a question, with what JSON can say.
    """

    def __init__(self, state_dir: Path | None, answer: Callable[[Question], Any]) -> None:
        self._directory = None if state_dir is None else state_dir / DIRECTORY
        self._answer = answer
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Begin to answer, in this process: after the fork. Without a socket, which the log tells,
        other workers do not know what this one does."""
        if self._directory is None:
            return
        try:
            self._listener = _listener(self._directory)
        except OSError as error:
            log.error(
                "other workers cannot ask this one for its calls: no socket in %s: %s",
                self._directory,
                error.strerror or error,
            )
            return
        work = partial(self._serve, self._listener)
        threading.Thread(target=work, name="questions", daemon=True).start()

    def close(self) -> None:
        """Answer no more. Harmless when repeated."""
        listener, self._listener = self._listener, None
        if listener is None or self._directory is None:
            return
        with contextlib.suppress(OSError):
            (self._directory / _name_of(this_worker())).unlink()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in `accept`
        listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                asking, _ = listener.accept()
            except OSError:
                if self._listener is listener:
                    time.sleep(_PAUSE_S)
                continue
            with asking:
                try:
                    asking.settimeout(ANSWER_S)
                    question = loads(_received(asking, _LARGEST_QUESTION))
                    asking.sendall(encoded(self._answer(question)))
                except OSError:
                    continue  # whoever asked has left
                except Exception as error:  # the thread's top: the next question may go better
                    log.error("a question of another worker failed", exc_info=error)


def ask_others(state_dir: Path | None, question: Question) -> Asked:
    """Ask all workers of this box but this process itself.

    Args:
        state_dir: None: there are no others.
    """
    if state_dir is None:
        return Asked((), 0)
    directory = state_dir / DIRECTORY
    own = _name_of(this_worker())
    try:
        with _opened(directory) as opened:
            names = [name for name in os.listdir(directory) if name.endswith(_SUFFIX)]
            works = [
                partial(_ask, opened, name, encoded(dict(question)))
                for name in sorted(names)[:_MOST]
                if name != own
            ]
            found = list(in_order(works, at_a_time=_AT_A_TIME))
    except FileNotFoundError:
        return Asked((), 0)  # no server has run here
    except OSError as error:
        log.error("workers cannot be asked: %s: %s", directory, error.strerror or error)
        return Asked((), 1)
    answers = tuple(each[0] for each in found if isinstance(each, tuple))
    return Asked(answers, sum(each is _SILENT for each in found))


#: The answers of a worker that did not answer in time, and of one that has ended.
_SILENT: Final = "silent"
_GONE: Final = "gone"


def _ask(directory: int, name: str, question: bytes) -> tuple[Any] | str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ANSWER_S)
        try:
            asking.connect(_address(directory, name))
            asking.sendall(question)
            asking.shutdown(socket.SHUT_WR)
            return (loads(_received(asking, _LARGEST_ANSWER)),)
        except ConnectionRefusedError:
            # Nobody listens, and a socket gets its name when somebody does: its process has ended.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            return _GONE
        except FileNotFoundError:
            return _GONE
        except (OSError, ValueError):
            return _SILENT


def _received(source: socket.socket, most: int) -> bytes:
    """All that comes until the other side has said everything.

    Raises:
        OSError: it takes too long altogether, is too much, or is nothing.
    """
    pieces, size, end_s = [], 0, time.monotonic() + ANSWER_S
    while piece := source.recv(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > most or time.monotonic() > end_s:
            raise OSError("too much, or too late")
    if not pieces:
        raise OSError("nothing was said")
    return b"".join(pieces)


def _listener(directory: Path) -> socket.socket:
    """A socket that listens under this process's name.

    Raises:
        OSError: there can be none.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = _name_of(this_worker())
    with _opened(directory) as opened:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Under another name until it listens: who is refused takes its process for dead.
            early = "." + name
            with contextlib.suppress(FileNotFoundError):
                os.unlink(early, dir_fd=opened)
            listener.bind(_address(opened, early))
            os.chmod(early, 0o600, dir_fd=opened)
            listener.listen(_BACKLOG)
            os.rename(early, name, src_dir_fd=opened, dst_dir_fd=opened)
        except BaseException:
            listener.close()
            raise
    return listener


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def _address(directory: int, name: str) -> str:
    """The address of a socket, however long the path of its directory is: unix(7) has room for 107
    bytes."""
    return f"/proc/self/fd/{directory}/{name}"


def _name_of(worker: str) -> str:
    """The file of a worker: its process id, for people, and what tells it from all others."""
    pid = worker.split("/")[2]
    return f"{pid}-{hashlib.blake2b(worker.encode(), digest_size=8).hexdigest()}{_SUFFIX}"
