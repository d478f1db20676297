"""The logins that this box shares with others, and its copies of those that it has no file of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.login_store import SOURCE_KEY, LoginPaths, LoginStore
from qwen_wsgi.credentials.shared.board import Board, BoardAway
from qwen_wsgi.credentials.shared.shared_login import SharedLogin, SharingTiming

#: The names of accounts that are logins in files.
_FILE_LOGIN: Final = re.compile(r"oauth(-[a-z0-9-]{1,32})?")


@dataclass(frozen=True)
class Sharing:
    """Makes the `SharedLogin`s of this box.

    Attributes:
        directory: in the state directory: for the rights to renew, and for the copies.
    """

    board: Board
    directory: Path
    clock: Clock
    sleep: Callable[[float], None]
    timing: SharingTiming = SharingTiming()

    def of(self, name: str, store: LoginStore, initial: CredentialDocument | None) -> SharedLogin:
        """The shared side of a login.

        Args:
            name: the account's.
            initial: the login in the environment: it is shared among the boxes with this value.
        """
        if initial is not None:
            name = f"env-{initial.raw.get(SOURCE_KEY)}"
        copy = store.paths.document.parent == self.directory
        return SharedLogin(
            name,
            store,
            self.board,
            self.directory,
            self.clock,
            own_file=initial is None and not copy,
            copy=copy,
            sleep=self.sleep,
            timing=self.timing,
        )

    def names(self) -> frozenset[str]:
        """The logins in files of all boxes; none while Redis is away."""
        try:
            return frozenset(filter(_FILE_LOGIN.fullmatch, self.board.names()))
        except BoardAway:
            return frozenset()

    def copy_of(self, name: str) -> Path:
        """Where this box keeps a login that it has no file of."""
        suffix = name.removeprefix("oauth").replace("-", "_", 1)
        return self.directory / f"oauth_creds{suffix}.json"

    def paths_of(self, name: str) -> LoginPaths:
        """The files of that copy."""
        return LoginPaths.beside(self.copy_of(name))
