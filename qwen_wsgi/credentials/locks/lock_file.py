"""Shared by our lock and qwen-code's: how the file is opened and signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: A remaining time that is too short to wait; sums of floats hardly ever end at 0. Seconds.
TICK_S: Final = 0.001
#: Neither lock file may be a symbolic link, and neither file descriptor survives an exec.
FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: No signature is longer.
MAX_BYTES: Final = 256


def never() -> bool:
    """The default of `give_up`: wait until the timeout."""
    return False


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such process.

    Pid and start time identify a process for good; a pid alone is reused. A zombie counts as gone:
    it holds no lock, and its parent may be late to reap it.

    Raises:
        OSError: it cannot be found out, e.g. without free file descriptors.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # "pid (name) state …": the name may contain blanks and parentheses, so count from the last.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_at(name: str, fd: int) -> bool:
    """Whether an open file is the one at that path.

    Raises:
        FileNotFoundError: there is no file at the path any more.
    """
    # While the fd is open, no new file can get its inode number.
    return os.path.samestat(os.fstat(fd), os.lstat(name))


def signature(word: str) -> bytes:
    """The content of both files: program, pid, start time of the process; then `word`: the wall
    clock in our lock, something unique in qwen-code's.
    """
    pid = os.getpid()
    # 0 without a /proc: readers then treat it as unknown whether we are alive.
    return f"qwen-proxy {pid} {start_time(pid) or 0} {word}\n".encode()
