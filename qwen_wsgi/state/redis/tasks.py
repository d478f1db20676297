"""Requests for tasks that boxes have sent to an account, so that none takes another's task for its
own when an answer was lost.

For each account and model a sorted set `<box> <key> <task or nothing>` by when it was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qwen_wsgi.state.redis.connection import PREFIX, SharedStore
from qwen_wsgi.state.shared_files import key_of

if TYPE_CHECKING:
    from redis import Redis

#: As long as boxes know their videos. Seconds.
_KEPT_S: Final = 26 * 3600
#: Between the clocks of two boxes. Seconds.
_CLOCKS_S: Final = 5.0


class TaskNotes:
    """The requests of all boxes."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    def note(self, account: str, model: str, key: int, sent_at: float, task: str = "") -> None:
        """Note a request of this box, or its task.

        Args:
            key: of the request on this box.
            sent_at: seconds since 1970.

        Raises:
            SharedStoreAway: perhaps it is noted, perhaps not.
        """
        name = _name(account, model)

        def work(redis: Redis) -> Any:
            with redis.pipeline(transaction=True) as several:
                several.zremrangebyscore(name, "-inf", sent_at - _KEPT_S)
                if task:
                    several.zrem(name, self._member(key))
                several.zadd(name, {self._member(key, task): sent_at})
                several.expire(name, _KEPT_S)
                return several.execute()

        self._store.run(work)

    def remove(self, account: str, model: str, key: int) -> None:
        """A request began no task. Raises SharedStoreAway."""
        name, member = _name(account, model), self._member(key)
        self._store.run(lambda redis: redis.zrem(name, member))

    def others(self, account: str, model: str, since: float) -> tuple[frozenset[str], int]:
        """Of the requests of other boxes since a time: their tasks, and how many have none yet.

        Raises SharedStoreAway.
        """
        name = _name(account, model)
        found: Any = self._store.run(
            lambda redis: redis.zrangebyscore(name, since - _CLOCKS_S, "+inf")
        )
        split = [member.decode().split(" ", 2) for member in found]
        tasks = [task for box, _, task in split if box != self._store.box]
        return frozenset(filter(None, tasks)), sum(not task for task in tasks)

    def _member(self, key: int, task: str = "") -> str:
        return f"{self._store.box} {key} {task}"


def _name(account: str, model: str) -> str:
    return f"{PREFIX}tasks:{key_of(account, model).hex()}"
