"""How the latest call of each account ended, shared by all workers: for `qwen-proxy status`.

A key that is set may never have been tried, or was refused an hour ago by a host that nobody has
asked since. Advisory, as everything in shared memory. Times are of CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.errors import ApiError, Scope, UpstreamError
from qwen_wsgi.state.shared_memory import Table, key_of

_VERSION: Final = "1"
#: Key, time of the latest success, time of the latest failure, its cause.
_ROW: Final = Struct("=8sdd24s")
_ROWS: Final = 256

#: Successes in a row are written down no more often than this: a busy account has hundreds.
_EVERY_S: Final = 1.0


class LatestCall(NamedTuple):
    """How the latest call ended.

    Attributes:
        age_s: how long ago.
        cause: why it failed, a stable word; "" if the account answered.
        answered_s: how long ago it last answered; None if it did not since the machine's start.
    """

    age_s: float
    cause: str
    answered_s: float | None


class Outcomes:
    """The latest calls. Shared by the greenlets of a worker, and through its file by all workers.

    Args:
        directory: where the file is; None keeps the outcomes in this process.
        copy: begin with what the file holds, and write nothing to it: for commands beside a server.
        boottime: seconds that never step and go on while the machine is suspended.
        boot_id: changes with every boot of the machine.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        copy: bool = False,
        boottime: Callable[[], float] = boottime,
        boot_id: str | None = None,
    ) -> None:
        self._now = boottime
        self._table = Table.shared(
            directory,
            "outcomes",
            _ROW,
            version=_VERSION,
            rows=_ROWS,
            age=1,
            copy=copy,
            boot_id=boot_id,
        )
        #: When the latest success of an account was written down, by the account's name.
        self._written_s: dict[str, float] = {}

    def answered(self, account: Account) -> None:
        """Its upstream answered."""
        now = self._now()
        if now - self._written_s.get(account.name, -_EVERY_S) < _EVERY_S:
            return
        self._written_s[account.name] = now
        at, found = self._row(account)
        failed, cause = self._table.read(at)[2:] if found else (0.0, b"")
        self._table.write(at, _key(account), now, failed, cause)

    def failed(self, account: Account, error: ApiError) -> None:
        """A request to it failed. What only concerns the request is an answer like any other."""
        if not isinstance(error, UpstreamError):
            return  # nothing was sent
        failure = error.failure
        if failure is not None and failure.scope is Scope.REQUEST:
            self.answered(account)
            return
        cause = failure.cause if failure is not None else error.code or error.type
        self._written_s.pop(account.name, None)
        at, found = self._row(account)
        answered = self._table.read(at)[1] if found else 0.0
        self._table.write(at, _key(account), answered, self._now(), cause.encode()[:24])

    def give_another_chance(self, account: Account) -> None:
        """Forget that its latest call failed: it may be asked again."""
        at, found = self._row(account)
        if found:
            key, answered = self._table.read(at)[:2]
            self._table.write(at, key, answered, 0.0, b"")

    def latest(self, account: Account) -> LatestCall | None:
        """How its latest call ended; None if there was none."""
        at = self._table.find(_key(account))
        if at is None:
            return None
        _, answered, failed, cause = self._table.read(at)
        now = self._now()
        if not answered and not failed:
            return None
        answered_s = now - answered if answered else None
        if failed > answered:
            return LatestCall(
                now - failed, cause.rstrip(b"\0").decode(errors="replace"), answered_s
            )
        return LatestCall(now - answered, "", answered_s)

    def _row(self, account: Account) -> tuple[int, bool]:
        return self._table.find_or_oldest(_key(account))


def _key(account: Account) -> bytes:
    """The row's key: with another API key it is another account."""
    credential = account.credential
    secret = credential.key or "" if isinstance(credential, StaticKey) else ""
    return key_of("outcome", account.name, account.base_url or "", secret)
