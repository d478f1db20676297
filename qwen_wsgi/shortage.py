"""Failures of our own: what this process or machine has run out of, and faults of this program.

A lack of files, memory or room is ours, wherever it shows: no upstream and no login service is to
blame for it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import ApiError, InternalError, Overloaded

log = logging.getLogger(__name__)

#: `Retry-After`: what calls hold is given back as they end.
_RETRY_AFTER_S: Final = 2.0


class Shortage(NamedTuple):
    """One thing to run out of.

    Attributes:
        code: a stable word for programs.
        what: the end of the sentence "The proxy has …".
        remedy: what the operator should do, as a sentence.
    """

    code: str
    what: str
    remedy: str

    def error(self) -> Overloaded:
        """The failure of a call that met it."""
        return Overloaded(
            f"The proxy has {self.what}, so it could not carry out this call; no upstream is at "
            f"fault. Please try again shortly. For the operator of this proxy: {self.remedy}",
            code=self.code,
            retry_after_s=_RETRY_AFTER_S,
        )


_FILES: Final = Shortage(
    "proxy_out_of_files",
    "no file descriptor left",
    "Raise LimitNOFILE= of the unit (in a shell `ulimit -n`), or lower QWEN_PROXY_MAX_IN_FLIGHT.",
)
_MEMORY: Final = Shortage(
    "proxy_out_of_memory",
    "no memory left",
    "Give the machine, or the service (MemoryMax= of the unit), more memory, or lower "
    "QWEN_PROXY_MAX_IN_FLIGHT.",
)
_DISK: Final = Shortage(
    "proxy_disk_full",
    "no room left on its disk",
    "Make room on the disks of the state directory, of /tmp and of ~/.qwen.",
)

_BY_ERRNO: Final = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.ENOSPC: _DISK,
    errno.EDQUOT: _DISK,
}


def shortage_of(error: BaseException) -> Shortage | None:
    """What has run out, if a failure came of that; None if it has another cause."""
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return _MEMORY
        if isinstance(each, OSError) and (found := _BY_ERRNO.get(each.errno or 0)) is not None:
            return found
        # A resolver that may open no file says only that it knows no such name; with libnss-mdns,
        # that something is busy.
        names = isinstance(each, socket.gaierror) or getattr(each, "errno", 0) == errno.EBUSY
        if names and _no_file_is_left():
            return _FILES
    return None


def fault_error(fault: Exception, request_id: str) -> ApiError:
    """Log a failure that nothing has handled; the error for its client, with the id to ask about.

    Without a traceback where something has run out, wherever that showed first.
    """
    if (shortage := shortage_of(fault)) is not None:
        log.error("out of resources request_id=%s: %r. %s", request_id, fault, shortage.remedy)
        return shortage.error()
    log.error("fault request_id=%s", request_id, exc_info=fault)
    return InternalError(
        f"The proxy failed on this request. Its log has the details under request id {request_id}."
    )


def by_errno(number: int | None) -> Shortage | None:
    """What has run out, by the system's number; None if it means something else."""
    return _BY_ERRNO.get(number or 0)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The failure and whatever caused it; also as urllib3 and requests wrap it."""
    left: list[Any] = [error]
    seen: set[int] = set()
    while left:
        each = left.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]


def _no_file_is_left() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return _BY_ERRNO.get(error.errno or 0) is _FILES
    return False
