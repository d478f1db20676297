"""A Debian in a directory, with its systemd as PID 1 of namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.kit.servers import REPO, wait_until

#: The release whose packages are installed, and its Python.
RELEASE: Final = "bookworm"
PYTHON: Final = "3.11"
#: What the README has one install, and what every installed Debian has.
PACKAGES: Final = (
    *("make", "python3-venv", "nginx", "openssl", "curl", "git", "bubblewrap"),
    *("systemd", "systemd-sysv", "dbus", "sudo", "ca-certificates", "iproute2", "procps"),
)
#: The C libraries for which wheels are built that work on that release.
_PLATFORMS: Final = ("manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "any")

_BOOT: Final = Path(__file__).with_name("boot.sh")
#: Where a shell of root looks for commands there.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def obstacle(tree: Path) -> str:
    """Why it cannot be done on this machine; empty if nothing is known."""
    if os.geteuid() != 0:
        return "it needs root"
    for program in ("debootstrap", "unshare", "nsenter", "ip"):
        if program == "debootstrap" and (tree / "etc/debian_version").exists():
            continue
        if shutil.which(program) is None:
            return f"{program} is not installed"
    done = subprocess.run(
        ["unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork", "true"],
        capture_output=True,
        text=True,
    )
    return f"there are no namespaces here: {done.stderr.strip()}" if done.returncode else ""


def make_tree(tree: Path, mirror: str) -> None:
    """Install Debian into a directory, with our checkout and the packages that pip will want.

    A system that is there already is kept; the checkout is made anew.
    """
    if not (tree / "etc/debian_version").exists():
        _run(
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            RELEASE,
            tree,
            mirror,
        )
    (tree / "etc/hostname").write_text("debian\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n")
    checkout = tree / "root/qwen-proxy"
    shutil.rmtree(checkout, ignore_errors=True)
    _run("git", "clone", "--quiet", REPO, checkout)
    # What is not committed yet, too.
    changed = subprocess.run(
        ["git", "diff", "--binary", "HEAD"], cwd=REPO, capture_output=True, check=True
    ).stdout
    if changed:
        subprocess.run(["git", "apply"], cwd=checkout, input=changed, check=True)
    _download_wheels(tree / "wheels")
    (tree / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")


def _download_wheels(directory: Path) -> None:
    """There is no network in the machine: pip finds there what it would get from PyPI."""
    directory.mkdir(exist_ok=True)
    # pip looks at conditions (`; python_full_version < ...`) with the Python that it runs in.
    unconditional = directory / "constraints.txt"
    constraints = (REPO / "qwen_wsgi/constraints.txt").read_text()
    unconditional.write_text(re.sub(r" ; [^\\\n]*", " ", constraints))
    platforms = [
        f"--platform={each}" if each == "any" else f"--platform={each}_{os.uname().machine}"
        for each in _PLATFORMS
    ]
    _run(
        *(sys.executable, "-m", "pip", "download", "-qq", "--dest", directory),
        *("--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms),
        *("--require-hashes", "-r", unconditional),
    )


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


class Machine:
    """A booted system; a context manager.

    Args:
        tree: the directory of the system.
        log: where its console goes.
    """

    def __init__(self, tree: Path, log: Path) -> None:
        self._tree = tree
        self._log = log
        self._group = f"qwen-proxy-debian-{os.getpid()}"
        self._init = 0

    def __enter__(self) -> Machine:
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                ["sh", str(_BOOT), str(self._tree), self._group],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            wait_until(self._is_up, f"the system starts (see {self._log})", within_s=60)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a line of shell as root, in the checkout; what it prints, errors included.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            self.command(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def command(self, command: str) -> Sequence[str]:
        """The command by which this machine runs a line of shell in that one."""
        environment = ("HOME=/root", f"PATH={_PATH}", "LANG=C.UTF-8", "TERM=dumb", "EDITOR=edit")
        return (
            *("nsenter", "--target", str(self._init), "--all", "env", "-i", *environment),
            *("sh", "-c", f"cd /root/qwen-proxy && {command}"),
        )

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = children.read_text().split()
        if not found or Path(f"/proc/{found[0]}/comm").read_text() != "systemd\n":
            return False
        self._init = int(found[0])
        return self.run("systemctl is-system-running", check=False).strip() in (
            "running",
            "degraded",
        )

    def _stop(self) -> None:
        # unshare takes its child with it, which is PID 1 of the rest.
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        (self._tree / "before").rmdir()
        for group in list(Path("/sys/fs/cgroup").rglob(self._group)):
            wait_until(partial(_is_removed, group), f"{group} is empty")


def _is_removed(group: Path) -> bool:
    for directory in sorted((each for each in group.rglob("*") if each.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            directory.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
