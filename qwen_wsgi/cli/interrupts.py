"""Sends a Ctrl-C again that Python dropped.

An exception in a finalizer is printed and dropped, also a KeyboardInterrupt. urllib3 closes its
connections in finalizers: a login, which asks every few seconds, went on after such a Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

#: The finalizer is left by then; otherwise it is sent once more.
_PAUSE_S: Final = 0.02


@contextmanager
def sent_again() -> Iterator[None]:
    """Within it a dropped KeyboardInterrupt is not printed but raised again, outside the finalizer.

    For the main thread.
    """
    before = sys.unraisablehook
    main = threading.get_ident()

    def hook(dropped: UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        # To the thread, so that a system call in it ends, too.
        timer = threading.Timer(_PAUSE_S, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
