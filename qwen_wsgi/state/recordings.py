"""Calls that an operator has asked to be recorded, with their bodies: nothing else stores any.

An order says whose next calls are recorded, how many, and until when. It is a file in the state
directory, which every worker sees within half a second; the recordings lie beside it. A worker
takes a place for a recording by creating its file, so that all workers together never record more
calls than were ordered.

All files can be read by the server's user alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from qwen_wsgi.clock import Clock

log = logging.getLogger(__name__)

#: How soon a worker sees an order. Seconds.
LOOK_EVERY_S: Final = 0.5
#: What one order may ask for.
MOST_CALLS: Final = 1000
LONGEST_MINUTES: Final = 24 * 60
#: Of an answer that is kept; the rest is cut, and the recording says so. Bytes.
MOST_BYTES: Final = 8 * 1024 * 1024

_VERSION: Final = 1
_ORDER: Final = "order-"
_RECORDING: Final = "call-"
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Order(NamedTuple):
    """Whose calls are recorded.

    Attributes:
        client: the name of a client key, or `local`.
        calls: how many.
        since, until: seconds since 1970.
    """

    id: str
    client: str
    calls: int
    since: float
    until: float


class Recordings:
    """The orders, and the files of what was recorded.

    Args:
        directory: created by the first order. None records nothing.
    """

    def __init__(self, directory: Path | None, clock: Clock) -> None:
        self.directory = directory
        self._clock = clock
        self._looked_at = float("-inf")
        self._orders: tuple[Order, ...] = ()
        #: How many places of each order are taken, as far as this worker knows.
        self._places: dict[str, int] = {}

    # --- for commands ------------------------------------------------------------------------

    def order(self, client: str, calls: int, minutes: float) -> Order:
        """Order that the next calls of a client are recorded.

        Raises:
            OSError: the order cannot be written.
        """
        assert self.directory is not None, "for commands"
        now = self._clock.now()
        order = Order(secrets.token_hex(4), client, calls, now, now + minutes * 60)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{_ORDER}{order.id}.json"
        # Under another name first: a worker must not read half of it.
        _create(path.with_suffix(".new"), json.dumps(order._asdict()).encode())
        path.with_suffix(".new").rename(path)
        return order

    def orders(self) -> list[Order]:
        """The orders whose time is not over, also those that are complete."""
        now = self._clock.now()
        found = (_read(path) for path in self._paths(_ORDER))
        return [order for order in found if order is not None and now < order.until]

    def stop(self) -> int:
        """Take all orders back; how many there were. What was recorded stays."""
        paths = self._paths(_ORDER)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        return len(paths)

    def files(self, order: Order | None = None) -> list[Path]:
        """The recordings, of one order or of all."""
        return self._paths(_RECORDING if order is None else f"{_RECORDING}{order.id}-")

    def _paths(self, prefix: str) -> list[Path]:
        if self.directory is None:
            return []
        return sorted(self.directory.glob(f"{prefix}*.json"))

    # --- for workers -------------------------------------------------------------------------

    def begin(self, client: str) -> Path | None:
        """The file for the call that a client begins now, if it is to be recorded."""
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._orders = tuple(self.orders())
        for order in self._orders:
            if order.client == client and self._clock.now() < order.until:
                path = self._take_place(order)
                if path is not None:
                    return path
        return None

    def _take_place(self, order: Order) -> Path | None:
        """The next file of an order; None if it is complete, or was taken back."""
        assert self.directory is not None
        if not (self.directory / f"{_ORDER}{order.id}.json").exists():
            return None
        try:
            for number in range(self._places.get(order.id, 0) + 1, order.calls + 1):
                self._places[order.id] = number
                path = self.directory / f"{_RECORDING}{order.id}-{number:04}.json"
                with contextlib.suppress(FileExistsError):
                    _create(path, b"")
                    return path
        except OSError as error:
            log.warning("a call cannot be recorded directory=%s: %s", self.directory, error)
        return None


class Recording:
    """One call on its way into its file.

    Args:
        redact: masks the secrets in a text.
        request: method, path, headers and body of the client's request.
    """

    def __init__(self, path: Path, redact: Callable[[str], str], request: dict[str, Any]) -> None:
        self._path = path
        self._redact = redact
        self._request = request
        self._status = 0
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._left = MOST_BYTES
        self._whole = True

    def begin_answer(self, status: int, headers: dict[str, str]) -> None:
        """Note the head of the answer."""
        self._status, self._headers = status, headers

    def keep(self, pieces: Iterable[bytes]) -> None:
        """Keep an answer's body that is there as a whole."""
        for piece in pieces:
            self._keep(piece)

    def passing(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Keep an answer's body while it is passed on."""
        iterator = iter(pieces)
        try:
            for piece in iterator:
                self._keep(piece)
                yield piece
        finally:
            if (close := getattr(iterator, "close", None)) is not None:
                close()

    def _keep(self, piece: bytes) -> None:
        self._whole = self._whole and len(piece) <= self._left
        if kept := piece[: self._left]:
            self._pieces.append(kept)
            self._left -= len(kept)

    def write(self, facts: dict[str, Any]) -> None:
        """Write it down; a failure is told to the log.

        Args:
            facts: of the call, as the log has them.
        """
        body = b"".join(self._pieces).decode(errors="replace")
        recording = {
            "version": _VERSION,
            "call": facts,
            "request": self._request,
            "response": {
                "status": self._status,
                "headers": self._headers,
                "body": body,
                "whole": self._whole,
            },
        }
        try:
            # Each text by itself: what is escaped twice would not be found.
            text = json.dumps(self._masked(recording), ensure_ascii=False, indent=1)
            self._path.write_bytes(text.encode(errors="replace") + b"\n")
        except (OSError, RecursionError) as error:  # the latter: a body that is nested deep
            log.warning("a call could not be recorded file=%s: %s", self._path, error)

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redact(value)
        if isinstance(value, dict):
            return {self._redact(name): self._masked(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._masked(each) for each in value]
        return value


def read(path: Path) -> dict[str, Any] | None:
    """The recording in a file; None for anything else.

    Raises:
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        return None
    request = value.get("request")
    whole = (
        isinstance(request, dict)
        and isinstance(request.get("path"), str)
        and isinstance(request.get("headers"), dict)
        and "body" in request
    )
    return value if whole else None


def _create(path: Path, content: bytes) -> None:
    fd = os.open(path, _FLAGS, 0o600)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def _read(path: Path) -> Order | None:
    """The order in a file; None if it is none."""
    try:
        value = json.loads(path.read_bytes())
        return Order(
            str(value["id"]),
            str(value["client"]),
            int(value["calls"]),
            float(value["since"]),
            float(value["until"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
