"""`qwen-proxy serve`: checks what can be checked before the start, then becomes gunicorn."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from qwen_wsgi import net
from qwen_wsgi.cli import sockets
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings

#: By default glibc returns large blocks to the system at once, and every megabyte of a body costs
#: page faults. With these the worker keeps some memory, which saves 0.5 to 0.9 ms per megabyte.
_ALLOCATOR: Final = {
    "MALLOC_MMAP_THRESHOLD_": "16777216",
    "MALLOC_TRIM_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "4194304",
}


#: The kernel answers for a server that listens.
_CONNECT_S: Final = 5.0

#: Where an installed package has the server's files; in a checkout they are at its top.
_PACKAGED: Final = Path(__file__).resolve().parents[1] / "_server"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def serve(
    settings: Settings, *, reload: bool = False, tell: Callable[[str], None] = lambda note: None
) -> NoReturn:
    """Check the accounts and the address, then replace this process by gunicorn.

    Args:
        tell: is given a warning for the log.
        reload: whether workers are replaced when the code changes, for developers.

    Raises:
        SettingsError: the operator must correct something first.
        CannotStartYet: the address is in use or not there yet, or a file cannot be read just now.
    """
    Discovery(settings, SystemClock()).check()
    if listening := sockets.passed(settings.environ):
        settings, told = sockets.adopt(settings, listening)
        if told:
            tell(told)
    else:
        check_bind(settings)
    home = server_files()
    command = [
        # This interpreter's own gunicorn, not another one on PATH.
        sys.executable,
        # No modules of the directory where somebody happens to stand; nor of PYTHONPATH, if this
        # process has none of those.
        "-I" if sys.flags.isolated else "-P",
        "-m",
        "gunicorn",
        "-c",
        str(home / "gunicorn.conf.py"),
        "--chdir",
        str(home),
        *(["--reload"] if reload else []),
        "wsgi:application",
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, {**_ALLOCATOR, **settings.environ})


def check_bind(settings: Settings) -> None:
    """Try the address, to report in one line what gunicorn reports in twelve after five tries.

    Raises:
        SettingsError: the address can never be listened on.
        CannotStartYet: it is in use, or this machine does not have it yet: another program or a
            server before this one may be ending, and an interface may still come up.
    """
    try:
        address = net.parse(settings.bind_address)
    except ValueError as error:
        raise _cannot_listen(settings, error) from None
    if address.path:
        directory = Path(address.path).parent
        if not os.access(directory, os.W_OK):
            raise SettingsError(
                f"cannot create the socket {address}: {directory} is missing or not writable; "
                "create it, or change QWEN_PROXY_BIND"
            )
        _check_socket(address)
        return
    try:
        addresses = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, proto, _, where = addresses[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, OverflowError) as error:
        raise _cannot_listen(settings, error) from None


def _check_socket(address: Address) -> None:
    """Check that no server listens at a unix socket: gunicorn would take its place without a word.

    Raises:
        CannotStartYet: one does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(address.path)
        except (BlockingIOError, TimeoutError):
            pass  # one whose queue is full
        except OSError:
            return  # nothing there, or what a server that ended has left
    raise CannotStartYet(
        f"cannot listen on {address}: another program listens there already; stop it, or change "
        "QWEN_PROXY_BIND"
    )


def _cannot_listen(settings: Settings, error: Exception) -> SettingsError | CannotStartYet:
    reason, passes = _bind_reason(error)
    kind = CannotStartYet if passes else SettingsError
    return kind(f"cannot listen on {settings.bind_address}: {reason}")


def _bind_reason(error: Exception) -> tuple[str, bool]:
    """Why, with what to do about it; and whether it may pass by itself."""
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return "another program listens there already; stop it, or choose another PORT", True
    if number == errno.EACCES:
        what = "ports below 1024 need privileges; choose another PORT and let nginx listen there"
        return what, False
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address, or not yet; correct HOST", True
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}; correct HOST if it stays so", True
    return f"{error}; correct HOST, PORT or QWEN_PROXY_BIND", False


def server_files() -> Path:
    """The directory of `gunicorn.conf.py` and `wsgi.py`.

    Raises:
        SettingsError: they are missing.
    """
    for directory in (_PACKAGED, _CHECKOUT):
        if (directory / "gunicorn.conf.py").is_file() and (directory / "wsgi.py").is_file():
            return directory
    raise SettingsError(
        f"gunicorn.conf.py and wsgi.py are missing from {_PACKAGED}; install the package again"
    )
