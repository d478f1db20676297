"""Memory that all workers of the box share: one small file per table, mapped into every worker.

Reading it costs a microsecond and no system call, so every call can look. It is advisory: nothing
waits for a lock, and two workers that write the same row in the same moment lose one of the two.
The file's name holds its version and the boot of the machine, so that the first worker creates it
and nobody replaces it while another one has it mapped; after a boot it begins anew.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import mmap
import os
from pathlib import Path
from struct import Struct
from typing import Any, Final

log = logging.getLogger(__name__)

KEY_BYTES: Final = 8
#: A row with this key is free.
NO_KEY: Final = bytes(KEY_BYTES)

#: Rows that are examined for a key before the oldest of them is taken.
_PROBES: Final = 4

Memory = mmap.mmap | bytearray


def key_of(*parts: str) -> bytes:
    """Hash the parts to a key of a table; reveals nothing of secrets among them."""
    return hashlib.blake2b(
        "\0".join(parts).encode(errors="replace"), digest_size=KEY_BYTES
    ).digest()


class Table:
    """Rows of one size, found by their key; the layout of a row is `struct`, key first.

    Attributes:
        memory, struct: for the owner, which packs and unpacks rows at the offsets found here.

    Args:
        start: offset of the first row in the memory.
        rows: how many there are.
        age: position of the value in a row by which the oldest is known.
    """

    def __init__(self, memory: Memory, struct: Struct, *, start: int, rows: int, age: int) -> None:
        self.memory = memory
        self.struct = struct
        self._start = start
        self._rows = rows
        self._age = age

    @classmethod
    def shared(
        cls,
        directory: Path | None,
        name: str,
        struct: Struct,
        *,
        version: str,
        rows: int,
        age: int,
        start: int = 0,
        copy: bool = False,
        boot_id: str | None = None,
    ) -> Table:
        """A table that fills the file of this name; see `map_shared`.

        Args:
            start: bytes before its rows, for the owner.
        """
        size = start + rows * struct.size
        memory = map_shared(directory, name, version=version, size=size, copy=copy, boot_id=boot_id)
        return cls(memory, struct, start=start, rows=rows, age=age)

    def find(self, key: bytes) -> int | None:
        """The offset of the key's row, or None."""
        memory = self.memory
        for at in _offsets(key, self._start, self._rows, self.struct.size):
            if memory[at : at + KEY_BYTES] == key:
                return at
        return None

    def find_or_oldest(self, key: bytes) -> tuple[int, bool]:
        """The offset of the key's row and True, else that of a free or the oldest row and False."""
        at = self.find(key)
        if at is not None:
            return at, True
        offsets = _offsets(key, self._start, self._rows, self.struct.size)
        return min(offsets, key=lambda at: float(self.read(at)[self._age])), False

    def read(self, at: int) -> tuple[Any, ...]:
        """The values of the row at an offset."""
        return self.struct.unpack_from(self.memory, at)

    def write(self, at: int, *values: Any) -> None:
        """Replace the row at an offset."""
        self.struct.pack_into(self.memory, at, *values)


@functools.lru_cache(maxsize=8192)
def _offsets(key: bytes, start: int, rows: int, size: int) -> tuple[int, ...]:
    first = int.from_bytes(key, "big") % rows
    return tuple(start + (first + step) % rows * size for step in range(_PROBES))


def map_shared(
    directory: Path | None,
    name: str,
    *,
    version: str,
    size: int,
    copy: bool = False,
    boot_id: str | None = None,
) -> Memory:
    """Map the file of this name in the state directory, creating it if need be.

    Plain memory, which other workers cannot see, where `directory` is None or cannot be written.

    Args:
        version: of the layout; another version uses another file.
        size: bytes.
        copy: plain memory that begins with what the file holds; nothing is created.
        boot_id: changes with every boot of the machine; None asks the kernel.
    """
    if directory is None:
        return bytearray(size)
    path = directory / f"{name}-{key_of(version, boot_id_of(boot_id)).hex()}"
    if copy:
        return _copied(path, size)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = _open(path, name, size)
        try:
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        log.warning("workers cannot share what they learn of accounts path=%s: %s", path, error)
        return bytearray(size)


def _copied(path: Path, size: int) -> bytearray:
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if len(content) == size:
            return bytearray(content)
    return bytearray(size)


def _open(path: Path, name: str, size: int) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, flags)
        if os.fstat(fd).st_size >= size:
            return fd
        # Somebody cut it. A look beyond the end of a mapped file kills the process (SIGBUS), and
        # writing it to its length would not help where a worker has mapped the old length.
        os.close(fd)
        log.warning("a file that workers share was cut, and begins anew path=%s", path)
        os.unlink(path)
    for old in path.parent.glob(f"{name}-*"):
        if old != path:  # another worker may have created it in this moment
            with contextlib.suppress(OSError):
                old.unlink()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(fresh, flags | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        # Written and not left as a hole: on a full disk a mapped hole kills the process.
        if os.write(fd, bytes(size)) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.close(fd)
        os.unlink(fresh)
    return os.open(path, flags)


def boot_id_of(named: str | None) -> str:
    """What changes with every boot of the machine; None asks the kernel."""
    if named is not None:
        return named
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
