"""The key that signs what clients carry for us, such as ids of videos; and how random bytes are
made once for all workers."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
from pathlib import Path
from typing import Final

from qwen_wsgi import whole_files
from qwen_wsgi.errors import ApiError

log = logging.getLogger(__name__)

_FILE: Final = "state.key"
_BYTES: Final = 32


class StateKey:
    """The operator's key, or one that is made once and kept in the state directory, for all
    workers.

    Args:
        configured: QWEN_PROXY_STATE_KEY; "" for none.
        directory: None keeps a made key in this process.
    """

    def __init__(self, configured: str, directory: Path | None) -> None:
        self._directory = directory
        self._key = configured.encode()
        self._lock = threading.Lock()

    def get(self) -> bytes:
        """The key; the file is read, or made, when it is first needed.

        Raises:
            ApiError: 503: the file can be neither read nor made.
        """
        if not self._key:
            with self._lock:
                self._key = self._key or self._kept()
        return self._key

    def _kept(self) -> bytes:
        if self._directory is None:
            return secrets.token_bytes(_BYTES)
        file = self._directory / _FILE
        try:
            return kept_or_made(file, _BYTES, lost="Earlier ids are not known any more.")
        except OSError as error:
            log.error(
                "%s cannot be read or made: %s. Give the directory to the user who runs the "
                "server, or set QWEN_PROXY_STATE_KEY.",
                file,
                error,
            )
            raise ApiError(
                "The proxy cannot read its own key now; its log says why.",
                status=503,
                code="state_key_unavailable",
                should_retry=False,
            ) from error


def command_key(key: bytes) -> str:
    """The client key of commands on the server's own machine that can read the state's key: what it
    protects is theirs already."""
    return hmac.new(key, b"qwen-proxy command", hashlib.sha256).hexdigest()


def kept_or_made(file: Path, size: int, *, lost: str = "") -> bytes:
    """Random bytes in a file, as hexadecimal digits; made when they are first needed. Of several
    processes that make them at the same time the first one's count.

    Args:
        size: how many there are; a file with others is replaced.
        lost: what it means that it was replaced, for the log.

    Raises:
        OSError: it can be neither read nor made.
    """
    return _read(file, size) or _made(file, size, lost)


def _read(file: Path, size: int) -> bytes:
    """The bytes; b"" if there are none, or not all."""
    try:
        found = bytes.fromhex(file.read_text("ascii").strip())
    except (FileNotFoundError, ValueError):
        return b""
    return found if len(found) == size else b""


def _made(file: Path, size: int, lost: str) -> bytes:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.exists() and not _read(file, size):
        # Half of one, of a disk that was full.
        log.error("%s was not whole, and is made anew. %s", file, lost)
        file.unlink(missing_ok=True)  # another process may have done so
    if not whole_files.make_once(file, f"{secrets.token_hex(size)}\n".encode()):
        log.debug("another process has made %s", file)
    if not (found := _read(file, size)):
        raise OSError(f"{file} is not whole")
    return found
