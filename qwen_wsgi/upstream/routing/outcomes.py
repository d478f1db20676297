"""How the latest call of each account ended, shared by all workers: for `qwen-proxy status`.

A key that is set may never have been tried, or was refused an hour ago by a host that nobody has
asked since. Advisory, as everything in a shared file. Times are of CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from qwen_wsgi.clock import boottime
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.errors import ApiError, Scope, UpstreamError
from qwen_wsgi.state.shared_files import SharedFiles, Table, key_of

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
        files, boottime: as for `cooldown.Cooldowns`.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self._now = boottime
        self._table = Table(files, "outcomes", _ROW, version=_VERSION, rows=_ROWS, age=1)
        #: When the latest success of an account was written down, by the account's name.
        self._written_s: dict[str, float] = {}

    def answered(self, account: Account) -> None:
        """Its upstream answered."""
        now = self._now()
        if now - self._written_s.get(account.name, -_EVERY_S) < _EVERY_S:
            return
        self._written_s[account.name] = now
        key = _key(account)
        row = self._table.get(key)
        failed, cause = row[2:] if row else (0.0, b"")
        self._table.put(key, now, failed, cause)

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
        key = _key(account)
        row = self._table.get(key)
        self._table.put(key, row[1] if row else 0.0, self._now(), cause.encode()[:24])

    def give_another_chance(self, account: Account) -> None:
        """Forget that its latest call failed: it may be asked again."""
        row = self._table.get(_key(account))
        if row:
            self._table.put(*row[:2], 0.0, b"")

    def latest(self, account: Account) -> LatestCall | None:
        """How its latest call ended; None if there was none."""
        row = self._table.get(_key(account))
        if row is None:
            return None
        _, answered, failed, cause = row
        now = self._now()
        if not answered and not failed:
            return None
        answered_s = now - answered if answered else None
        if failed > answered:
            return LatestCall(
                now - failed, cause.rstrip(b"\0").decode(errors="replace"), answered_s
            )
        return LatestCall(now - answered, "", answered_s)


def _key(account: Account) -> bytes:
    """The row's key: with another API key it is another account."""
    credential = account.credential
    secret = credential.key or "" if isinstance(credential, StaticKey) else ""
    return key_of("outcome", account.name, account.base_url or "", secret)
