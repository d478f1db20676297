"""Which models were found to read no pictures, sound or video, shared by all workers.

The built-in profiles know the hosts' own models. Of any other model only its refusal tells, and
that refusal would end a conversation for good: its history, with the picture, comes again with
each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from struct import Struct
from typing import Final

from qwen_wsgi.clock import boottime
from qwen_wsgi.state.shared_memory import Table, key_of

#: What a chat message may hold besides text.
INPUTS: Final = ("image", "audio", "video")

_NONE: Final[frozenset[str]] = frozenset()

_VERSION: Final = "1"
#: Before the rows: whether there is any. Mostly there is none, and nothing is looked up.
_ANY: Final = Struct("=?7x")
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
        directory, boottime, boot_id: as for `upstream.routing.cooldown.Cooldowns`.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        boottime: Callable[[], float] = boottime,
        boot_id: str | None = None,
    ) -> None:
        self._now = boottime
        self._table = Table.shared(
            directory,
            "refused-inputs",
            _ROW,
            version=_VERSION,
            start=_ANY.size,
            rows=_ROWS,
            age=2,
            boot_id=boot_id,
        )
        self._memory = self._table.memory

    def of(self, account: str, base_url: str | None, model: str) -> frozenset[str]:
        """The inputs that a model refused lately, at the account of this name and base URL."""
        if not self._memory[0]:
            return _NONE
        at = self._table.find(_key(account, base_url, model))
        if at is None:
            return _NONE
        _, bits, until = self._table.read(at)
        if self._now() >= until:
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
        at, _ = self._table.find_or_oldest(key)
        self._table.write(at, key, bits, self._now() + believed_s)
        _ANY.pack_into(self._memory, 0, True)


def _key(account: str, base_url: str | None, model: str) -> bytes:
    return key_of("inputs", account, base_url or "", model)
