"""A copy of this machine that a test may install into: changes vanish with it.

An overlay over the root directory, with processes, a network and /run of its own. Only for root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

#: Mounts the copy on /mnt, which nobody else sees, and runs $1 in it; $2 is a working directory.
_ENTER = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay none -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mount -t proc none /mnt/root/proc
mount --rbind /dev /mnt/root/dev
mount -t tmpfs none /mnt/root/run
echo entered
exec chroot /mnt/root sh -e "$1"
"""

#: Brings up the loopback interface, also where `ip` is not installed.
LOOPBACK = """
import fcntl, socket, struct
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS, UP | RUNNING
"""


def run(script: str, directory: Path, *, timeout_s: float) -> str:
    """Run a shell script in a new copy of this machine; what it prints. A failure is the test's.

    Skips the test where no copy can be made.

    Args:
        directory: where files for it are written; the script sees them, too.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root, and `unshare`")
    inside, enter = directory / "inside.sh", directory / "enter.sh"
    (directory / "loopback.py").write_text(LOOPBACK)
    inside.write_text(f"python3 {directory}/loopback.py\n{script}")
    enter.write_text(_ENTER)
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
        + ["sh", str(enter), str(inside)],
        cwd="/",
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if not done.stdout.startswith("entered"):
        pytest.skip(f"this environment allows no overlay ({done.stderr.strip()[-200:]})")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.removeprefix("entered\n")
