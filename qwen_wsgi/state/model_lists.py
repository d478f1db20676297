"""Model lists that the workers of the box tell each other, so that one look at a host serves all.

One file per account in the state directory; a number that workers share says that one has changed,
so that a call that has the list reads no file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from qwen_wsgi import whole_files
from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_files import Number, SharedFiles, key_of

log = logging.getLogger(__name__)

_VERSION: Final = "1"
#: A longer list is fetched by each worker itself; the longest known has 165 models in 30 kB.
_MOST_BYTES: Final = 4 * 1024 * 1024


class SharedList(NamedTuple):
    """What a worker learned when it asked a host for its models.

    Attributes:
        at: when, by boot time.
        models: the entries by id; None if the host gave no list.
        error: why not, or "".
    """

    at: float
    models: dict[str, dict[str, Any]] | None
    error: str


class SharedLists:
    """Writes and reads the lists. Shared by all greenlets of a worker; a list that cannot be
    written is known to its worker alone.

    Args:
        files: in whose directory they are; None shares nothing.
        boottime: as for `cooldown.Cooldowns`.

    Attributes:
        now: the clock of `SharedList.at`.
        changed: a value that changes when any worker has written a list; cheap to ask.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self.now = boottime
        files = files or SharedFiles(None)
        self._boot_id = files.boot_id
        self._directory = None if files.directory is None else files.directory / "models"
        #: When a list was written last, by boot time.
        self._changed = Number(files.open("lists", Number.SIZE, version=_VERSION))
        self.changed = self._changed.get

    def write(self, account: str, base_url: str | None, found: SharedList) -> None:
        """Tell the other workers."""
        if self._directory is None:
            return
        value = {"boot": self._boot_id, **found._asdict()}
        content = json.dumps(value, separators=(",", ":")).encode()
        if len(content) > _MOST_BYTES:
            return
        path = self._path(self._directory, account, base_url)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            whole_files.replace(path, content, durable=False)
        except OSError as error:
            log.debug("a model list is not shared path=%s: %s", path, error)
            return
        self._changed.set(self.now())

    def read(self, account: str, base_url: str | None) -> SharedList | None:
        """What was learned last since the machine started; None if nothing was."""
        if self._directory is None:
            return None
        try:
            with open(self._path(self._directory, account, base_url), "rb") as file:
                value = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        return self._parsed(value)

    def _parsed(self, value: Any) -> SharedList | None:
        if not isinstance(value, dict) or value.get("boot") != self._boot_id:
            return None
        at, models, error = value.get("at"), value.get("models"), value.get("error")
        if not isinstance(at, float) or at > self.now() or not isinstance(error, str):
            return None
        if models is not None and not (
            isinstance(models, dict) and all(isinstance(each, dict) for each in models.values())
        ):
            return None
        return SharedList(at, models, error)

    @staticmethod
    def _path(directory: Path, account: str, base_url: str | None) -> Path:
        return directory / f"{key_of('list', account, base_url or '').hex()}.json"
