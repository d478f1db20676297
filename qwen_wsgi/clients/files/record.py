"""What was written into the files of clients, so that it can be taken back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.state import file_lock

_VERSION: Final = 1
#: A record has what our values replaced, and no more.
_LARGEST_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class Written:
    """One file that was changed.

    Attributes:
        path: as the client names it; it may be a link.
        kind: of the text: json, toml or yaml.
        note: of the edit, for its way back.
        after: SHA-256 of the file as we left it.
        mode: of the file before, None if there was none.
        backup: the copy of the file before, "" if there was none.
        directories: those that were made for it, the deepest first.
    """

    path: str
    kind: str
    note: Any
    after: str
    mode: int | None
    backup: str
    directories: tuple[str, ...]


class Record:
    """The record of one client, in the user's own state directory."""

    def __init__(self, directory: Path, client: str) -> None:
        self._directory = directory
        self.path = directory / f"{client}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second command away.

        Raises:
            SettingsError: there is one, or the directory cannot be used.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(
                f"{self._directory} cannot be used ({error.strerror}), where changes are noted. "
                "Nothing was changed. QWEN_PROXY_STATE_DIR names another directory"
            ) from None
        try:
            if not file_lock.take(fd):
                raise SettingsError("another `qwen-proxy clients` is changing files; try again")
            yield
        finally:
            os.close(fd)

    def read(self) -> list[Written]:
        """What is noted.

        Raises:
            SettingsError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                text = file.read(_LARGEST_BYTES + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SettingsError(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            value = json.loads(text)
            if value["version"] != _VERSION:
                raise ValueError
            return [
                Written(**{**each, "directories": tuple(each["directories"])})
                for each in value["files"]
            ]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise SettingsError(
                f"{self.path} is damaged or of another version, so it is not known what was "
                "changed. Nothing was done. The files as they were are beside the client's own, "
                "with .before-qwen-proxy at the end of their names"
            ) from None

    def write(self, files: Sequence[Written]) -> None:
        """Note these, and forget the former.

        Raises:
            OSError: they cannot be noted.
        """
        if not files:
            self.path.unlink(missing_ok=True)
            return
        value = {"version": _VERSION, "files": [asdict(each) for each in files]}
        durable.replace_file(self.path, json.dumps(value, indent=1).encode())
