"""What the checks need of the machine: file systems, programs, sockets, clocks.

Nothing here changes anything. Tests replace it.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

import certifi

from qwen_wsgi import clock, local_http
from qwen_wsgi.doctor import witness
from qwen_wsgi.net import Address

#: Where Debian keeps nginx and systemctl; an ordinary user's PATH lacks some of them.
_SYSTEM_PATHS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")


class Ran(NamedTuple):
    """A finished program: its exit status and both outputs."""

    status: int
    out: str
    err: str


class Room(NamedTuple):
    """The free space of a file system for this user."""

    bytes: int
    #: Inodes; None where the file system does not count them.
    files: int | None


class Machine:
    """The real one.

    Args:
        environ: of this process.
        root: where `/etc`, `/run` and `/proc` are.
    """

    def __init__(self, environ: Mapping[str, str], *, root: Path = Path("/")) -> None:
        self.root = root
        self.uid = os.geteuid()
        #: What root saw before it became this user.
        self.root_saw = witness.received(environ)
        self._environ = environ

    # --- time --------------------------------------------------------------------------------

    def now(self) -> float:
        """Wall clock, seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of a clock that never jumps."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds since the machine was started, suspended ones included."""
        return clock.boottime()

    # --- users -------------------------------------------------------------------------------

    def user(self, uid: int) -> str:
        """A user's name, or the number if it has none."""
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def in_group(self, user: str, group: str) -> bool | None:
        """Whether a user is in a group; None if there is no such user or group."""
        try:
            found = grp.getgrnam(group)
            return user in found.gr_mem or pwd.getpwnam(user).pw_gid == found.gr_gid
        except KeyError:
            return None

    # --- files -------------------------------------------------------------------------------

    def may(self, path: Path, how: int) -> bool:
        """Whether this process may do it (`os.R_OK`, `os.W_OK`, `os.X_OK`); asks the kernel."""
        return os.access(path, how, effective_ids=True)

    def room(self, path: Path) -> Room:
        """The free space of the file system of a path.

        Raises:
            OSError: it is unknown.
        """
        status = os.statvfs(path)
        return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)

    def filesystem(self, path: Path) -> str:
        """The kind of file system that a path is on, e.g. `ext4`; "" if unknown."""
        try:
            lines = (self.root / "proc/self/mounts").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        real = os.path.realpath(path)
        best = ("", "")
        for line in lines:
            _, place, kind, *_ = (*line.split(" "), "", "", "")
            place = place.replace("\\040", " ")
            below = real == place or real.startswith(place.rstrip("/") + "/")
            if below and len(place) >= len(best[0]):
                best = (place, kind)
        return best[1]

    def open_files(self) -> tuple[int, int]:
        """This process's limits of open files, soft and hard; -1 is unlimited."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    # --- programs ----------------------------------------------------------------------------

    def program(self, name: str) -> str | None:
        """Where a program is, or None."""
        path = os.pathsep.join((self._environ.get("PATH", ""), *_SYSTEM_PATHS))
        return shutil.which(name, path=path)

    def run(self, command: list[str], *, timeout_s: float) -> Ran:
        """Run a program and wait for it; it does not get our environment.

        Raises:
            OSError: it cannot be run.
            TimeoutError: it takes too long.
        """
        path = os.pathsep.join((self._environ.get("PATH", ""), *_SYSTEM_PATHS))
        try:
            done = subprocess.run(
                command,
                env={"PATH": path, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{command[0]} took longer than {timeout_s:g} s") from None
        return Ran(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def installed_version(self, name: str) -> str | None:
        """The version of a Python package that is installed beside this program, or None."""
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    # --- network -----------------------------------------------------------------------------

    def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of a host.

        Raises:
            OSError: it has none.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(str(each[4][0]) for each in found))

    def connect(self, host: str, port: int, *, timeout_s: float) -> None:
        """Open a connection and close it again.

        Raises:
            OSError: it cannot be opened.
        """
        socket.create_connection((host, port), timeout_s).close()

    def certificate_end(self, host: str, port: int, *, timeout_s: float) -> float:
        """Make a TLS connection; the end of the server's certificate, in seconds since 1970.

        It trusts the same certificates as upstream calls do.

        Raises:
            OSError: no connection, no TLS, or a certificate that is not trusted.
        """
        bundle = self._environ.get("REQUESTS_CA_BUNDLE") or self._environ.get("CURL_CA_BUNDLE")
        bundle = bundle or certifi.where()
        context = ssl.create_default_context(
            cafile=None if os.path.isdir(bundle) else bundle,
            capath=bundle if os.path.isdir(bundle) else None,
        )
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            found = secured.getpeercert() or {}
        return float(ssl.cert_time_to_seconds(str(found["notAfter"])))

    def get(self, address: Address, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        """GET from a server on this machine: status and body.

        Raises:
            OSError: no connection, or no answer.
            http.client.HTTPException: the answer is not HTTP.
        """
        return local_http.get(address, path, timeout_s=timeout_s)
