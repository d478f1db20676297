"""The key that signs what clients carry for us, such as ids of videos."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import threading
from pathlib import Path
from typing import Final

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
            return _read(file) or _made(file)
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


def _read(file: Path) -> bytes:
    """The key in a file; b"" if there is none, or not a whole one."""
    try:
        key = bytes.fromhex(file.read_text("ascii").strip())
    except (FileNotFoundError, ValueError):
        return b""
    return key if len(key) == _BYTES else b""


def _made(file: Path) -> bytes:
    """Make the key. Of several processes the first one's counts.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = file.with_name(f"{_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(_BYTES) + "\n")
            out.flush()
            os.fsync(out.fileno())
        if file.exists() and not _read(file):
            # Half of one, of a disk that was full.
            log.error("%s holds no key: a new one is made, and earlier ids are not known", file)
            file.unlink()
        try:
            os.link(own, file)  # unlike a rename, never over one that is there
        except FileExistsError:
            log.debug("another worker has made the key")
    finally:
        own.unlink()
    key = _read(file)
    if not key:
        raise OSError(f"{file} holds no key")
    return key
