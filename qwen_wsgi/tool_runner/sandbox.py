"""Programs in bubblewrap: what they see of this machine, their bounds, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.tool_runner import system_calls

_CONFINE: Final = Path(__file__).with_name("confine.py")

#: What a program finds of the system, read-only. Nothing of /etc but this: it has secrets, too.
_SYSTEM: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_ETC: Final = (
    *("alternatives", "ca-certificates", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime"),
    *("mime.types", "ssl/certs", "ssl/openssl.cnf", "fonts", "nodejs"),
)
_ETC_OF_NETWORK: Final = ("resolv.conf", "hosts", "nsswitch.conf", "gai.conf", "services")
_HOSTS: Final = "127.0.0.1 localhost\n::1 localhost\n"

#: Folders of the system that no entry may uncover, nor a folder above them.
_NEVER: Final = ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc/qwen-proxy")

_OPEN_FILES: Final = 1024
_SHARED_MEMORY: Final = 64 * 1024 * 1024
#: The end of what a program wrote to its standard error, for a message.
_TAIL: Final = 2000
#: A program whose namespace is ended is gone at once; only a kernel that is stuck needs longer.
_END_S: Final = 5.0
#: Bytes of a line over a pipe of a program: a picture in base64 is one.
LONGEST_LINE: Final = 16 * 1024 * 1024

_ENVIRONMENT: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
}


class CannotStart(Exception):
    """A program cannot be started in a sandbox. The text says why, and what to do."""


@dataclass(frozen=True)
class Bounds:
    """What a sandbox may take of the machine: bytes, processes with threads."""

    memory: int
    processes: int
    disk: int


@dataclass(frozen=True)
class Program:
    """What runs in a sandbox, and what it may see.

    Attributes:
        texts: files that exist only there, by their paths.
        cpu_s: of each process; 0 is no limit.
        pass_files: numbers of open files that it gets.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    read: Sequence[str] = ()
    write: Sequence[str] = ()
    network: bool = False
    cwd: str = "/tmp"
    texts: Mapping[str, str] = field(default_factory=dict)
    cpu_s: int = 0
    pass_files: Sequence[int] = ()


def arguments(program: Program, bounds: Bounds, *, bwrap: str, root: Path = Path("/")) -> list[str]:
    """The command line of bubblewrap. Folders must have been checked (`folder_for`).

    Args:
        root: where the system's folders are looked at.
    """
    found = [bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    found += ["--new-session", "--cap-drop", "ALL"]
    if program.network:
        found += ["--share-net"]
    found += ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = root / name
        if path.is_symlink():
            found += ["--symlink", os.readlink(path), f"/{name}"]
        elif path.is_dir():
            found += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in (*_ETC, *(_ETC_OF_NETWORK if program.network else ())):
        found += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    found += ["--proc", "/proc", "--dev", "/dev"]
    found += ["--size", str(bounds.disk), "--tmpfs", "/tmp"]
    for folder in program.read:
        found += ["--ro-bind", folder, folder]
    for folder in program.write:
        found += ["--bind", folder, folder]
    # bubblewrap's own folders are in memory without a limit, so they are closed.
    found += ["--remount-ro", "/dev", "--size", str(_SHARED_MEMORY), "--tmpfs", "/dev/shm"]
    found += ["--remount-ro", "/", "--chdir", program.cwd]
    return [*found, "--", *program.command]


def folder_for(path: str, private: Sequence[str]) -> str:
    """The real path of a folder that an entry names.

    Args:
        private: what no tool may see: the proxy's own files and folders.

    Raises:
        CannotStart: it is not there, or it would uncover something private.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        raise CannotStart(f"{path} is not there, or cannot be seen by this user; create it")
    for each in (*_NEVER, *private):
        hidden = os.path.realpath(each)
        if _is_in(hidden, real) or _is_in(real, hidden):
            raise CannotStart(f"{path} would show {each} to the tool; name a smaller folder")
    return real


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class Sandbox:
    """Starts programs in bubblewrap.

    Args:
        private: what no tool may see.
        user: the name of the user that programs run as if this process is root's.
    """

    def __init__(
        self, bounds: Bounds, *, private: Sequence[str], user: str = "nobody", bwrap: str = ""
    ) -> None:
        self._bounds = bounds
        self._private = tuple(private)
        self._user = user
        self._bwrap = bwrap

    @contextlib.asynccontextmanager
    async def started(self, program: Program) -> AsyncIterator[Process]:
        """A running program, which is ended on the way out with everything it has started.

        Raises:
            CannotStart: it cannot be started here.
        """
        spec = self._spec(program)
        # The program gets `given`; `kept` is closed only where it does not run. What has begun to
        # run when this fails, or is cancelled, ends by that.
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            spec_file = os.memfd_create("spec")
            given.callback(os.close, spec_file)
            life, held = os.pipe()
            given.callback(os.close, life)
            kept.callback(os.close, held)
            told, status = os.pipe()
            given.callback(os.close, status)
            kept.callback(os.close, told)
            os.write(spec_file, json.dumps(spec).encode())
            os.lseek(spec_file, 0, os.SEEK_SET)
            passed = (spec_file, life, status)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_CONFINE), *map(str, passed)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(*passed, *program.pass_files),
                env={},
                cwd="/",
                limit=LONGEST_LINE,
            )
            kept.pop_all()
        running = Process(process, held, told)
        try:
            yield running
        finally:
            await running.end()

    def _spec(self, program: Program) -> dict[str, Any]:
        bwrap = self._bwrap or shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
        if not bwrap:
            raise CannotStart("bubblewrap is not installed (apt install bubblewrap)")
        read = [folder_for(each, self._private) for each in program.read]
        write = [folder_for(each, self._private) for each in program.write]
        uid = gid = None
        if os.geteuid() == 0:
            # No limit on processes holds root, and root's files shall not be in reach.
            try:
                user = pwd.getpwnam(self._user)
            except KeyError:
                raise CannotStart(f"there is no user {self._user!r} on this machine") from None
            uid, gid = user.pw_uid, user.pw_gid
        checked = Program(
            program.command,
            read=read,
            write=write,
            network=program.network,
            cwd=program.cwd,
        )
        texts = dict(program.texts)
        if not program.network:
            texts["/etc/hosts"] = _HOSTS
        return {
            "argv": arguments(checked, self._bounds, bwrap=bwrap),
            "env": {**_ENVIRONMENT, **program.env},
            "texts": texts,
            "system_calls": system_calls.program().hex(),
            "uid": uid,
            "gid": gid,
            "memory": self._bounds.memory,
            "processes": self._bounds.processes,
            "disk": self._bounds.disk,
            "files": _OPEN_FILES,
            "cpu_s": program.cpu_s,
        }


class Process:
    """A program that runs in a sandbox."""

    def __init__(self, process: asyncio.subprocess.Process, held: int, told: int) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.stdin: Final = process.stdin
        self.stdout: Final = process.stdout
        self.stderr: Final = process.stderr
        self._process = process
        self._held = held
        self._told = told
        self._how: dict[str, Any] = {}

    async def end(self) -> None:
        """End it, with everything it has started. Harmless when repeated."""
        if self._held < 0:
            return
        held, self._held = self._held, -1
        os.close(held)
        ended = asyncio.ensure_future(self._process.wait())
        try:
            # Not to be given up when the caller is cancelled: it takes milliseconds.
            await asyncio.wait_for(asyncio.shield(ended), _END_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        finally:
            self._read_how()
            told, self._told = self._told, -1
            os.close(told)
            transport: Any = getattr(self._process, "_transport", None)
            if transport is not None:
                transport.close()

    async def wait(self) -> str:
        """Wait until it has ended; why, as a clause."""
        await self._process.wait()
        return self.reason()

    def reason(self) -> str:
        """Why it has ended, as a clause."""
        self._read_how()
        how = self._how
        if "failed" in how:
            return str(how["failed"])
        if how.get("over") == "memory":
            return "it was stopped, because it used more memory than QWEN_PROXY_TOOL_MEMORY allows"
        code = how.get("code")
        return "it was stopped" if code is None else f"it ended with status {code}"

    def _read_how(self) -> None:
        if self._how or self._told < 0:
            return
        os.set_blocking(self._told, False)
        try:
            # The first line counts: what could not even start has told why, and its end is another.
            lines = os.read(self._told, 4096).splitlines()
            found = json.loads(lines[0]) if lines else {}
        except (OSError, ValueError):
            return
        self._how = found if isinstance(found, dict) else {}


async def tail_of(stream: asyncio.StreamReader) -> str:
    """The end of a stream of text, once it has ended."""
    kept = b""
    while piece := await stream.read(65_536):
        kept = (kept + piece)[-_TAIL:]
    return kept.decode(errors="replace").strip()
