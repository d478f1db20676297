"""Tables that all workers of the box share: one small file per table, read and written in place.

A look is one system call that finds its bytes in the kernel's memory: about a microsecond, so
every call can look. Nothing is mapped: a process that looks beyond the end of a mapped file is
killed (SIGBUS), and whoever cuts the file chooses the moment. Here a file that was cut has nothing
to tell, and the next write makes it longer again (docs/decisions/044).

What is in a file is advisory: nothing waits for a lock, and two workers that write the same row in
the same moment lose one of the two. Each row has a checksum: half of one, or garbage, is not there.
The name of a file holds its version and the boot of the machine; after a boot it begins anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final, Protocol
from zlib import crc32

log = logging.getLogger(__name__)

KEY_BYTES: Final = 8

#: Of what this module adds to the rows; a part of every file's version.
_LAYOUT: Final = "2"

#: Rows in which a key may be; the oldest of them makes room.
_PLACES: Final = 4

#: CRC-32 of anything that is followed by its own CRC-32, the lowest byte first (RFC 1952, 8).
_WHOLE: Final = 0x2144DF1C
_CHECKSUM: Final = Struct("<I")
_NUMBER: Final = Struct("=d")


def key_of(*parts: str) -> bytes:
    """Hash the parts to a key of a table; reveals nothing of secrets among them."""
    return hashlib.blake2b(
        "\0".join(parts).encode(errors="replace"), digest_size=KEY_BYTES
    ).digest()


class Content(Protocol):
    """The bytes of a table."""

    def read(self, size: int, at: int, /) -> bytes:
        """The bytes there; fewer, or none, where it is shorter. Raises OSError, as `os.pread`."""

    def write(self, data: bytes, at: int) -> None:
        """Replace the bytes there."""

    def look_after(self) -> None:
        """Find out whether others still have the same."""


class SharedFiles:
    """The files in which the workers of a box share their tables.

    Args:
        directory: where they are; None keeps all in this process.
        copy: begin with what the files hold, and write nothing to them: for commands beside a
            server.
        boot_id: changes with every boot of the machine; None asks the kernel.
    """

    def __init__(
        self, directory: Path | None, *, copy: bool = False, boot_id: str | None = None
    ) -> None:
        self.boot_id = this_boot() if boot_id is None else boot_id
        self.directory = None if copy else directory
        self._copied_from = directory if copy else None
        self._open: list[Content] = []

    def open(self, name: str, size: int, *, version: str) -> Content:
        """The content of the file of this name, which is created if need be; plain memory, which
        other workers cannot see, where that fails.

        Args:
            size: bytes that it will need.
            version: of the layout; another version uses another file.
        """
        file = f"{name}-{key_of(_LAYOUT, version, self.boot_id).hex()}"
        content: Content = _Memory()
        if self._copied_from is not None:
            with contextlib.suppress(OSError):
                content = _Memory((self._copied_from / file).read_bytes())
        elif self.directory is not None:
            try:
                content = _File(self.directory / file, name, size)
            except OSError as error:
                _tell(self.directory / file, error)
        self._open.append(content)
        return content

    def look_after(self) -> None:
        """Go over to the files that have their names now, where some were removed or replaced:
        workers that start later have those. To be called every few seconds."""
        for content in self._open:
            content.look_after()


class _Memory(bytearray):
    """Content that only this process has."""

    def read(self, size: int, at: int, /) -> bytes:
        return bytes(self[at : at + size])

    def write(self, data: bytes, at: int) -> None:
        self.extend(bytes(max(0, at + len(data) - len(self))))
        self[at : at + len(data)] = data

    def look_after(self) -> None:
        pass


class _File:
    """Content that all workers have.

    Attributes:
        read: a plain function of one system call, as every call needs it several times.
    """

    def __init__(self, path: Path, name: str, size: int) -> None:
        self._path = path
        self._size = size
        self._fails = False
        if not path.exists():
            for old in path.parent.glob(f"{name}-*"):
                if old != path:  # another worker may have created it in this moment
                    with contextlib.suppress(OSError):
                        old.unlink()
        self._fd = _open(path, size)
        self.read = functools.partial(os.pread, self._fd)

    def write(self, data: bytes, at: int) -> None:
        try:
            os.pwrite(self._fd, data, at)
        except OSError as error:  # of a full disk, where the file was cut
            self._failed(error)
        else:
            self._fails = False

    def look_after(self) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(self._path)
                if os.path.samestat(found, os.fstat(self._fd)):
                    if found.st_size < self._size:
                        log.warning("a file that workers share was cut path=%s", self._path)
                        os.posix_fallocate(self._fd, 0, self._size)
                    return
            fresh = _open(self._path, self._size)
        except OSError as error:
            self._failed(error)
            return
        # Under the same number, for those who read now.
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)
        log.warning("a file that workers share was replaced, and begins anew path=%s", self._path)

    def _failed(self, error: OSError) -> None:
        if not self._fails:
            _tell(self._path, error)
        self._fails = True

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


def _open(path: Path, size: int) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)  # now, and not when a full disk would refuse a write
    except BaseException:
        os.close(fd)
        raise
    return fd


def _tell(path: Path, error: OSError) -> None:
    log.warning("workers cannot share what they learn of accounts path=%s: %s", path, error)


class Number:
    """One number that workers share, 0.0 until somebody sets it.

    Args:
        at: where it is in the content.

    Attributes:
        SIZE: its bytes.
    """

    SIZE: Final = _NUMBER.size + _CHECKSUM.size

    def __init__(self, content: Content, at: int = 0) -> None:
        self._content = content
        self._read = content.read
        self._at = at
        #: What was read last, and the number in it: mostly it is the same.
        self._known = (b"", 0.0)

    def get(self) -> float:
        """The number that any worker has set last."""
        try:
            found = self._read(self.SIZE, self._at)
        except OSError:
            return 0.0
        known, value = self._known
        if found != known:
            value = _NUMBER.unpack_from(found)[0] if crc32(found) == _WHOLE else 0.0
            self._known = (found, value)  # in one step, because threads read it
        return value

    def set(self, value: float) -> None:
        """Tell all workers another one."""
        self._content.write(_with_checksum(_NUMBER.pack(value)), self._at)


class Table:
    """Rows of one size, found by their key.

    Args:
        files: None keeps it in this process.
        name, version: of its file, see `SharedFiles.open`.
        struct: the layout of a row, key first.
        rows: how many there are.
        age: position of the value in a row by which the oldest is known.
        numbers: how many numbers stand beside the rows.

    Attributes:
        numbers: these.
    """

    def __init__(
        self,
        files: SharedFiles | None,
        name: str,
        struct: Struct,
        *,
        version: str,
        rows: int,
        age: int,
        numbers: int = 0,
    ) -> None:
        self._struct = struct
        self._start = numbers * Number.SIZE
        self._size = struct.size + _CHECKSUM.size
        self._rows = rows
        # A key has all its places also if the first of them is the last row.
        self._all = (rows + _PLACES - 1) * self._size
        files = files or SharedFiles(None)
        self._content = files.open(name, self._start + self._all, version=version)
        self._read = self._content.read
        self.numbers = [Number(self._content, at * Number.SIZE) for at in range(numbers)]
        self._age = age

    def get(self, key: bytes) -> tuple[Any, ...] | None:
        """The values of the key's row, the key among them; None if it has none."""
        places = self._places(self._place(key))
        at = places.find(key)
        return None if at < 0 else self._row(places, at)

    def put(self, key: bytes, *values: Any) -> None:
        """Write the key's row; if it has none, in place of a free or else the oldest one."""
        place = self._place(key)
        places = self._places(place)
        at = places.find(key)
        if at < 0 or at % self._size:
            at = min(
                range(0, _PLACES * self._size, self._size),
                key=functools.partial(self._age_of, places),
            )
        self._content.write(_with_checksum(self._struct.pack(key, *values)), place + at)

    def remove(self, key: bytes) -> None:
        """Free the key's row, if it has one."""
        place = self._place(key)
        at = self._places(place).find(key)
        if at >= 0 and at % self._size == 0:
            self._content.write(bytes(self._size), place + at)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """All rows that are written."""
        found = self._read_at(self._start, self._all)
        rows = (self._row(found, at) for at in range(0, len(found), self._size))
        return (row for row in rows if row is not None)

    def _place(self, key: bytes) -> int:
        """Where the first of the rows is in which the key may be."""
        return self._start + int.from_bytes(key, "big") % self._rows * self._size

    def _places(self, at: int) -> bytes:
        return self._read_at(at, _PLACES * self._size)

    def _read_at(self, at: int, size: int) -> bytes:
        try:
            return self._read(size, at)
        except OSError:  # of a disk that fails
            return b""

    def _row(self, found: bytes, at: int) -> tuple[Any, ...] | None:
        row = found[at : at + self._size]
        if at % self._size or len(row) < self._size or crc32(row) != _WHOLE:
            return None
        return self._struct.unpack_from(row)

    def _age_of(self, places: bytes, at: int) -> float:
        row = self._row(places, at)
        return float("-inf") if row is None else float(row[self._age])


def _with_checksum(data: bytes) -> bytes:
    return data + _CHECKSUM.pack(crc32(data))


def this_boot() -> str:
    """The id of the machine's boot, another one after each; "" if it is unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
