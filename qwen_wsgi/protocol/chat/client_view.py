"""Adapts chunks to what the client requested: the model's name, and usage."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.usage import normalized

_MODEL: Final = re.compile(rb'"model": ?("(?:[^"\\]|\\.)*")')


class ModelName:
    """Replaces the model's name in chunks by the client's name for it.

    Args:
        names: the upstream's name and the client's. If they are equal, or for None, nothing is
            changed, and the client sees the snapshot that some hosts name instead.

    Attributes:
        is_another: they differ.
    """

    def __init__(self, names: tuple[str, str] | None) -> None:
        self._name = names[1] if names is not None and names[0] != names[1] else None
        self.is_another = self._name is not None
        #: The member as the upstream writes it, and as the client gets it.
        self._member, self._sent = b"", b""

    def in_line(self, line: bytes) -> bytes | None:
        """Replace the name in a chunk; None if that has to be done in its parsed form.

        A member with bare quotes cannot occur inside a text. If it occurs deeper in a chunk, it
        names the same model.
        """
        if not self._member or self._member not in line:
            return None
        return line.replace(self._member, self._sent)

    def in_chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Replace the name in a parsed chunk."""
        if self._name is None or "model" not in chunk:
            return chunk
        return {**chunk, "model": self._name}

    def learn(self, line: bytes, chunk: dict[str, Any]) -> None:
        """Learn how the upstream writes the member: which snapshot, with a space or without."""
        if self._name is None:
            return
        for found in _MODEL.finditer(line):
            if json.loads(found[1]) == chunk.get("model"):
                self._member = found[0]
                self._sent = found[0].removesuffix(found[1]) + compact(self._name).encode()
                return


class UsageView:
    """Sends usage as OpenAI does: once, in a last chunk without choices, if it was requested.

    Some clients add up all usage they get, so usage that comes with a finish or with every chunk is
    held back until the end.

    Args:
        hide: the client did not request it.
        normalize: usage in another place, or with other members, is changed to OpenAI's form. Else
            only usage that comes before a finish is held back.
    """

    def __init__(self, *, hide: bool, normalize: bool) -> None:
        self._hide, self._normalize = hide, normalize
        self._hidden: Any = None
        self._owed: dict[str, Any] | None = None
        self._sent = False

    def of(self, chunk: dict[str, Any], *, finished: bool) -> dict[str, Any] | None:
        """Change a chunk with usage to what the client gets; None for nothing.

        Args:
            finished: every choice has its finish, so this may be the last chunk.
        """
        alone = not chunk.get("choices")
        if self._hide:
            self._hidden = chunk["usage"]
            return None if alone else {k: v for k, v in chunk.items() if k != "usage"}
        if not self._normalize and not alone:
            return chunk
        usage = normalized(chunk["usage"]) if self._normalize else chunk["usage"]
        if not (alone and finished):
            self._owed = {**chunk, "choices": [], "usage": usage}
            return None if alone else {**chunk, "usage": None}
        if self._sent:
            return None
        self._sent = True
        return chunk if usage is chunk["usage"] else {**chunk, "usage": usage}

    @property
    def hidden(self) -> Any:
        """The usage that the client did not get, as it would have got it; None if there is none."""
        return normalized(self._hidden) if self._normalize and self._hidden else self._hidden

    def owed(self) -> dict[str, Any] | None:
        """The chunk with usage that is still to be sent at the end of the stream."""
        owed = None if self._sent else self._owed
        self._sent = True
        return owed
