"""Which models were found to read no pictures, sound or video, shared by all workers.

The built-in profiles know the hosts' own models. Of any other model only its refusal tells, and
that refusal would end a conversation for good: its history, with the picture, comes again with
each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from struct import Struct
from typing import Final

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_files import SharedFiles, Table, key_of

#: What a chat message may hold besides text.
INPUTS: Final = ("image", "audio", "video")

_NONE: Final[frozenset[str]] = frozenset()

_VERSION: Final = "1"
#: Account and model, a bit for each of `INPUTS`, until when it is believed.
_ROW: Final = Struct("=8sId")
_ROWS: Final = 512

#: A refusal is believed for as long as its call may take ...
SUSPECTED_S: Final = 60.0
#: ... and longer if the same request succeeds without the parts: they were the reason. Not for
#: good, since whoever runs the server may load another model by that name.
PROVED_S: Final = 24 * 3600.0


class RefusedInputs:
    """Remembers what models refused to read.

    Args:
        files, boottime: as for `upstream.routing.cooldown.Cooldowns`.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self._now = boottime
        self._table = Table(
            files, "refused-inputs", _ROW, version=_VERSION, rows=_ROWS, age=2, numbers=1
        )
        # Until when any row is believed. Mostly none is, and nothing is looked up.
        (self._believed_until,) = self._table.numbers

    def of(self, account: str, base_url: str | None, model: str) -> frozenset[str]:
        """The inputs that a model refused lately, at the account of this name and base URL."""
        now = self._now()
        if now >= self._believed_until.get():
            return _NONE
        row = self._table.get(_key(account, base_url, model))
        if row is None:
            return _NONE
        _, bits, until = row
        if now >= until:
            return _NONE
        return frozenset(name for bit, name in enumerate(INPUTS) if bits >> bit & 1)

    def remember(
        self,
        account: str,
        base_url: str | None,
        model: str,
        inputs: Collection[str],
        *,
        believed_s: float,
    ) -> None:
        """Record what a model refused, beside what is recorded."""
        key = _key(account, base_url, model)
        refused = self.of(account, base_url, model).union(inputs)
        bits = sum(1 << bit for bit, name in enumerate(INPUTS) if name in refused)
        until = self._now() + believed_s
        self._table.put(key, bits, until)
        if until > self._believed_until.get():
            self._believed_until.set(until)


def _key(account: str, base_url: str | None, model: str) -> bytes:
    return key_of("inputs", account, base_url or "", model)
