"""Which temporary chats are still there: in files, so that those of a killed worker can be deleted.

A file for each chat, `<directory>/<digest of the login>/<id of the chat>`, with the name of the
worker that will delete it. No token is kept, so what a dead worker left of a caller's login is
deleted when that login calls again.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from qwen_wsgi.state.workers import is_gone, this_worker

log = logging.getLogger(__name__)

#: What is older is forgotten: by then most tokens have ended.
_KEPT_S: Final = 30 * 86400.0
#: Deleted at one call.
_MOST: Final = 20
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WORKER: Final = re.compile(r"[^/]*/[^/]*/[0-9]+/[0-9]*")


class LeftChats:
    """The files. What cannot be written or read is as if it were not there: chats are deleted all
    the same, but for those of a worker that is killed.

    Args:
        directory: None keeps nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def note(self, login: str, chat: str) -> None:
        """A chat was opened; this process deletes it."""
        if (path := self._path(login, chat)) is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(this_worker())
        except OSError as error:
            log.warning("%s cannot be written: %s", path.parent, error)

    def forget(self, login: str, chat: str) -> None:
        """It is deleted."""
        if (path := self._path(login, chat)) is not None:
            with suppress(OSError):
                path.unlink()

    def give_up(self, login: str, chat: str) -> None:
        """It could not be deleted: the next call of the login tries again."""
        if (path := self._path(login, chat)) is not None and path.exists():
            with suppress(OSError):
                path.write_text("")

    def take(self, login: str) -> list[str]:
        """Chats of a login that nobody deletes any more; this process does now."""
        if (path := self._path(login, "x")) is None:
            return []
        found: list[str] = []
        with suppress(OSError):
            for each in os.scandir(path.parent):
                if len(found) == _MOST:
                    break
                if _NAME.fullmatch(each.name) and _is_left(Path(each.path)):
                    found.append(each.name)
        for chat in found:
            self.note(login, chat)
        return found

    def sweep(self) -> None:
        """Forget what is old, and the empty directories of logins."""
        if self._directory is None:
            return
        oldest = time.time() - _KEPT_S
        for login in _listed(self._directory):
            for chat in _listed(login):
                with suppress(OSError):
                    if chat.stat().st_mtime < oldest:
                        chat.unlink()
            with suppress(OSError):
                login.rmdir()  # only an empty one goes

    def _path(self, login: str, chat: str) -> Path | None:
        return None if self._directory is None else self._directory / login / chat


def _is_left(path: Path) -> bool:
    try:
        worker = path.read_text(errors="replace")[:500]
        silent_s = time.time() - path.stat().st_mtime
    except OSError:
        return False
    if not _WORKER.fullmatch(worker):
        # Of a file that is just being written nothing is there yet.
        return worker != "" or silent_s > 1.0
    return is_gone(worker, 0.0 if silent_s < _KEPT_S else silent_s)


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
