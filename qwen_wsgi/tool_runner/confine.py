"""Starts a program in bubblewrap, and ends it with everything it has started.

Run as a program of its own (`python -I -S confine.py SPEC LIFE STATUS`, three open files by their
numbers), so it uses the standard library alone.

It gives up root, and makes a namespace of processes whose first process is the *keeper*. The keeper
starts bubblewrap and watches LIFE, a pipe whose other end only the runner has. When the runner
ends, in whatever way, the pipe ends; the keeper exits; and with the first process of a namespace
the kernel ends all others in it. Nothing depends on a signal that arrives too early: not while
bubblewrap starts, and not while this program starts. The keeper also watches the memory of all
processes together, which no limit of a single process does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from typing import Any, NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
PR_SET_DUMPABLE = 4
#: No files of devices, no programs, and none with rights of their own: as bubblewrap mounts it.
PROC_FLAGS = 0x2 | 0x4 | 0x8

#: How often the memory is looked at.
LOOK_S = 0.2
#: The keeper, bubblewrap's two processes, and one that is being made.
OWN_PROCESSES = 4


def main() -> NoReturn:
    spec_file, life, status = map(int, sys.argv[1:4])
    for number in (spec_file, life, status):
        os.set_inheritable(number, False)
    with open(spec_file, "rb") as file:
        spec = json.loads(file.read())
    libc = ctypes.CDLL(None, use_errno=True)
    # Tools shall not slow down the workers; and if memory runs out, they are ended first.
    os.nice(5)
    _write("/proc/self/oom_score_adj", "800")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spec["uid"] is not None:
        os.setgroups([])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
        # Otherwise the files below /proc/self are still root's.
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0:
        code = ctypes.get_errno()
        _end(status, failed=f"this system allows no namespaces ({os.strerror(code)})")
    try:
        _write("/proc/self/setgroups", "deny", must=True)
        _write("/proc/self/uid_map", f"{uid} {uid} 1", must=True)
        _write("/proc/self/gid_map", f"{gid} {gid} 1", must=True)
    except OSError as error:
        _end(status, failed=f"this system allows no namespaces of users ({error.strerror})")
    keeper = os.fork()
    if keeper == 0:
        _keep(spec, life, status, uid, gid)
    # Its standard files are the keeper's alone from here on, so that their end is seen.
    for number in (0, 1, 2, life, status):
        os.close(number)
    os.waitpid(keeper, 0)
    os._exit(0)


def _keep(spec: dict[str, Any], life: int, status: int, uid: int, gid: int) -> NoReturn:
    """The first process of the namespace: start the program, and wait for an end."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        _become(spec, status, uid, gid)
    poll = select.poll()
    poll.register(life, select.POLLIN)
    poll.register(wake, select.POLLIN)
    most = int(spec["memory"])
    while True:
        ready = [number for number, _ in poll.poll(LOOK_S * 1000)]
        if life in ready:
            # The runner has closed it, or is gone.
            os._exit(0)
        if wake in ready:
            os.read(wake, 4096)
        while True:
            try:
                pid, how = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                _end(status, code=-1)
            if pid == 0:
                break
            if pid == child:
                _end(status, code=os.waitstatus_to_exitcode(how))
        if _memory(most) > most:
            _end(status, over="memory")


def _become(spec: dict[str, Any], status: int, uid: int, gid: int) -> NoReturn:
    """Turn into bubblewrap, within limits."""
    try:
        limits = {
            resource.RLIMIT_DATA: spec["memory"],
            resource.RLIMIT_FSIZE: spec["disk"],
            resource.RLIMIT_NPROC: spec["processes"] + OWN_PROCESSES,
            resource.RLIMIT_NOFILE: spec["files"],
        }
        if spec["cpu_s"]:
            limits[resource.RLIMIT_CPU] = spec["cpu_s"]
        for limit, most in limits.items():
            _, hard = resource.getrlimit(limit)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(limit, (most, most))
        own = {
            "/etc/passwd": f"tool:x:{uid}:{gid}::/tmp:/bin/sh\n",
            "/etc/group": f"tool:x:{gid}:\n",
        }
        argv = list(spec["argv"])
        # While the root can still be written.
        place = argv.index("--remount-ro")
        for path, text in {**own, **spec["texts"]}.items():
            argv[place:place] = ["--ro-bind-data", str(_opened(text.encode())), path]
        if spec["system_calls"]:
            argv[1:1] = ["--seccomp", str(_opened(bytes.fromhex(spec["system_calls"])))]
        _see_own_processes()
        os.execve(argv[0], argv, spec["env"])
    except OSError as error:
        _end(status, failed=f"{spec['argv'][0]} does not start: {error.strerror}")


def _see_own_processes() -> None:
    """Give bubblewrap a /proc of this namespace, if that may be: there it looks for its child, by
    the number that the namespace gives it. In the old one another process has that number or, as in
    most containers, none has, and bubblewrap gives up."""
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNS) == 0:
        libc.mount(b"proc", b"/proc", b"proc", PROC_FLAGS, None)


def _opened(data: bytes) -> int:
    """A file in memory that bubblewrap can read."""
    number = os.memfd_create("data", 0)
    os.write(number, data)
    os.lseek(number, 0, os.SEEK_SET)
    os.set_inheritable(number, True)
    return number


def _memory(enough: int) -> int:
    """Bytes that all processes below this one use, each page counted once.

    The exact number costs more, so it is asked for only if the cheap one is above `enough`.
    """
    # In /proc a process has the number that the namespace of that /proc gives it.
    pids = _descendants(int(os.readlink("/proc/self")))
    cheap = sum(_kilobytes(pid, "status", (b"RssAnon:", b"RssShmem:")) for pid in pids) * 1024
    if cheap <= enough:
        return cheap
    return (
        sum(_kilobytes(pid, "smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:")) for pid in pids) * 1024
    )


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        try:
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue  # it has ended meanwhile
    return found[1:]


def _kilobytes(pid: int, file_name: str, names: tuple[bytes, ...]) -> int:
    try:
        with open(f"/proc/{pid}/{file_name}", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


def _write(path: str, text: str, *, must: bool = False) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError:
        if must:
            raise


def _end(status: int, **how: object) -> NoReturn:
    """Tell the runner how it ended, and exit: with everything in the namespace."""
    with contextlib.suppress(OSError):  # nobody may be there any more
        os.write(status, json.dumps(how).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
