"""What our lock and qwen-code's have in common: how the file is opened, and who signed it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

#: A rest that is too short to wait for; sums of floats hardly ever end at 0.
TICK_S: Final = 0.001
#: Neither lock file can be a link to another place, and neither outlives an exec.
FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: No signature is longer.
MAX_BYTES: Final = 256


def sleep(seconds: float) -> None:
    """Wait, and under gevent let the other greenlets run."""
    # Looked up per call: as a default value, `time.sleep` would be the one from before the monkey
    # patch whenever this module was imported first, and would stop the hub.
    time.sleep(seconds)


def never() -> bool:
    """For who does not give up."""
    return False


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is no such process.

    With the pid it names a process for good; a pid alone is given out again. A zombie counts as
    gone: it holds nothing, and its parent may take its time.

    Raises:
        OSError: it cannot be told, e.g. for want of file descriptors.
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
        FileNotFoundError: there is none any more.
    """
    # The open fd is our identity: as long as it is open, no new file can get its inode number.
    return os.path.samestat(os.fstat(fd), os.lstat(name))


def signature(word: str) -> bytes:
    """What both files say: program, pid, start time of the process; then `word`: the wall clock in
    our lock, something unique in qwen-code's.
    """
    pid = os.getpid()
    # 0 without a /proc: then nobody can tell whether we live, and must not guess.
    return f"qwen-proxy {pid} {start_time(pid) or 0} {word}\n".encode()
