"""How stored values travel: compressed, and sealed where the boxes share a key.

The first byte says how: `0` compressed, `1` sealed as well. Prompts and answers are in them, so
whoever can read Redis, or its dump on a disk, could read those; with QWEN_PROXY_STATE_KEY nobody
can. What was put before the key was set is still read.
"""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from qwen_wsgi.state.database.responses import LARGEST
from qwen_wsgi.state.database.sqlite import Apart, here

_PLAIN: Final = b"0"
_SEALED: Final = b"1"
#: Of zlib: most of the gain for a fifth of the time.
_LEVEL: Final = 1
#: In a thread apart from so many bytes on.
_LONG: Final = 64 * 1024


class Unreadable(Exception):
    """A value in Redis cannot be read; the text says why, for people."""


class Sealing(Protocol):
    """Seals and opens (`sealing.Seal`)."""

    def seal(self, name: str, content: bytes) -> bytes:
        """The content, which only the boxes with the same key can read, for this name alone."""

    def open(self, name: str, sealed: bytes) -> bytes:
        """The content; an exception if it was sealed with another key, or for another name."""


class Packer:
    """Packs values for Redis.

    Args:
        seal: None without a key that the boxes share.
        apart: a thread for large values.
    """

    def __init__(self, seal: Sealing | None, apart: Apart = here) -> None:
        self._seal = seal
        self._apart = apart

    def pack(self, name: str, value: bytes) -> bytes:
        """A value for the record of this name."""

        def work() -> bytes:
            packed = zlib.compress(value, _LEVEL)
            return (
                _PLAIN + packed if self._seal is None else _SEALED + self._seal.seal(name, packed)
            )

        return self._apart(work) if len(value) > _LONG else work()

    def unpack(self, name: str, packed: bytes) -> bytes:
        """The value.

        Raises:
            Unreadable: it cannot be read.
        """

        def work() -> bytes:
            how, content = packed[:1], packed[1:]
            if how == _SEALED:
                content = self._opened(name, content)
            elif how != _PLAIN:
                raise Unreadable("it is of a newer version of qwen-proxy")
            return _unzipped(content)

        return self._apart(work) if len(packed) > _LONG // 8 else work()

    def _opened(self, name: str, content: bytes) -> bytes:
        if self._seal is None:
            raise Unreadable(
                "it is sealed, and this box has no QWEN_PROXY_STATE_KEY: set the same one on all"
            )
        try:
            return self._seal.open(name, content)
        except Exception as error:  # of the kinds that `sealing` has
            raise Unreadable(
                "it was sealed with another QWEN_PROXY_STATE_KEY, or is damaged: set the same one "
                "on all boxes"
            ) from error


def _unzipped(content: bytes) -> bytes:
    unzip = zlib.decompressobj()
    try:
        value = unzip.decompress(content, 2 * LARGEST)
    except zlib.error as error:
        raise Unreadable(f"it is damaged ({error})") from None
    if not unzip.eof:
        raise Unreadable("it is damaged, or larger than anything that is stored")
    return value
