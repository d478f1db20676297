"""Images built by buildah, and containers run by podman, without a registry of images."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: For machines like CI's: no network of its own, no systemd, few files and processes.
RUN: Final = (
    *("--runtime", "runc", "--cgroup-manager", "cgroupfs"),
    "run",
    *("--network", "host", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=4000:4000"),
)
#: What a base image's shell needs for a Dockerfile's lines.
_PROGRAMS: Final = ("sh", "chmod", "chown", "mkdir", "rm", "cat", "id", "env", "sleep", "ls")
_COMMON: Final = (
    *("librt", "libdl", "libm", "libpthread", "libutil", "libresolv", "libnss_files"),
    *("libnss_dns", "libgcc_s", "libstdc++"),
)
#: Of Python's own files: what nobody needs who serves. The compiled ones stay, or each Python of
#: the build and of the containers would compile what it loads of the standard library.
_LEFT_OUT: Final = shutil.ignore_patterns("test", "idlelib", "tkinter", "*.opt-?.pyc", "*.a")


def obstacle() -> str:
    """Why no image can be built and run here; "" if one can."""
    if os.geteuid():
        return "containers are built and run as root here"
    for program in ("buildah", "podman", "runc"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt: buildah podman runc)"
    if Path(sys.base_prefix) == Path("/usr"):
        return "a Python outside /usr is needed, which can be copied into an image"
    return ""


def run(*command: str, timeout: float = 60) -> str:
    """Run a program; what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def libraries_of(files: Iterable[Path]) -> set[Path]:
    """The libraries that programs and libraries load, the loader included."""
    command = ["ldd", *map(str, files)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", printed)}


def make_base(root: Path) -> None:
    """Make the files of an image that looks like Docker's `python:slim`: a shell, and a Python with
    pip in /usr/local. The Python is the one that runs this."""
    for name in ("tmp", "etc", "proc", "sys", "dev", "root", "usr/bin", "usr/lib"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name, target in (("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (root / name).symlink_to(target)
    (root / "usr/lib64").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    shutil.copytree("/etc/ssl", root / "etc/ssl", ignore=shutil.ignore_patterns("private"))
    shutil.copytree("/usr/share/ca-certificates", root / "usr/share/ca-certificates")
    shutil.copytree(sys.base_prefix, root / "usr/local", symlinks=True, ignore=_LEFT_OUT)
    local = root / "usr/local/bin"
    for name in ("python", "python3"):
        (local / name).unlink(missing_ok=True)
        (local / name).symlink_to(f"python3.{sys.version_info.minor}")
    programs = [Path(shutil.which(name) or "/nowhere") for name in _PROGRAMS]
    for program in programs:
        shutil.copy(program, root / "usr/bin" / program.name)
    extensions = [*(root / "usr/local").rglob("*.so*"), local / "python3"]
    # Beside what they load: what is in every Debian, and what wheels therefore expect.
    common = [
        path for name in _COMMON for path in Path("/usr/lib").glob(f"*-linux-gnu/{name}.so.*")
    ]
    for library in {*libraries_of([*programs, *extensions]), *common}:
        copy = root / str(library).lstrip("/")
        if root not in library.parents and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)


def image_of(root: Path, name: str) -> None:
    """Make an image with these files alone."""
    container = run("buildah", "from", "scratch").strip()
    try:
        run("buildah", "add", "--quiet", container, str(root), "/", timeout=120)
        run("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
        run("buildah", "commit", "--quiet", "--format", "docker", container, name, timeout=120)
    finally:
        run("buildah", "rm", container)


def size_of(image: str) -> int:
    """Bytes of an image, uncompressed, with those of its base."""
    return int(run("podman", "image", "inspect", "--format", "{{.Size}}", image))


@contextmanager
def removed(*images: str) -> Iterator[None]:
    """Remove images at the end."""
    try:
        yield
    finally:
        subprocess.run(["podman", "rmi", "--force", *images], capture_output=True, timeout=60)
