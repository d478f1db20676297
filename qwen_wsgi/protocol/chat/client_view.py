"""What of a chunk depends on what its client asked for: the model's name, and usage."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.usage import mended

_MODEL: Final = re.compile(rb'"model": ?("(?:[^"\\]|\\.)*")')


class ModelName:
    """Gives chunks the client's name for the model, however their upstream spells its own.

    Args:
        names: the name upstream and the client's; where they are the same, or for None, nothing is
            changed, and the client sees the snapshot that some hosts name instead.
    """

    def __init__(self, names: tuple[str, str] | None) -> None:
        self._name = names[1] if names is not None and names[0] != names[1] else None
        #: The member as the upstream writes it, and as the client gets it.
        self._member, self._told = b"", b""

    def in_lines(self, lines: bytes, count: int = 1) -> bytes | None:
        """So many chunks as the client gets them; None if they have to be parsed for that.

        A member with its bare quotes cannot occur inside a text. Where it occurs deeper in a chunk,
        it names the same model.
        """
        if self._name is None:
            return lines
        if not self._member or lines.count(self._member) < count:
            return None
        return lines.replace(self._member, self._told)

    def in_chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """The same for a chunk that was parsed."""
        if self._name is None or "model" not in chunk:
            return chunk
        return {**chunk, "model": self._name}

    def learn(self, line: bytes, chunk: dict[str, Any]) -> None:
        """Take over how the upstream writes the name: which snapshot, and with a space or not."""
        if self._name is None:
            return
        for found in _MODEL.finditer(line):
            if json.loads(found[1]) == chunk.get("model"):
                self._member = found[0]
                self._told = found[0].removesuffix(found[1]) + compact(self._name).encode()
                return


class UsageView:
    """Shows usage as OpenAI does: once, in a last chunk without choices, to who asked for it.

    Some clients add up all that they are told, so what comes with a finish or with every chunk is
    kept until the end.

    Args:
        hide: the client did not ask for it.
        mend: usage that comes elsewhere, or with other members, is set right.
    """

    def __init__(self, *, hide: bool, mend: bool) -> None:
        self._hide, self._mend = hide, mend
        self._owed: dict[str, Any] | None = None
        self._told = False

    def of(self, chunk: dict[str, Any], *, finished: bool) -> dict[str, Any] | None:
        """A chunk with usage as the client gets it; None if not at all.

        Args:
            finished: a finish reason went by, so this may be the last chunk.
        """
        alone = not chunk.get("choices")
        if self._hide:
            return None if alone else {k: v for k, v in chunk.items() if k != "usage"}
        if not self._mend:
            return chunk
        usage = mended(chunk["usage"])
        if not (alone and finished):
            self._owed = {**chunk, "choices": [], "usage": usage}
            return None if alone else {**chunk, "usage": None}
        if self._told:
            return None
        self._told = True
        return chunk if usage is chunk["usage"] else {**chunk, "usage": usage}

    def owed(self) -> dict[str, Any] | None:
        """The chunk with usage that the client has not got, at the end of the stream."""
        owed = None if self._told else self._owed
        self._told = True
        return owed
