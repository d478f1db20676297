"""The changes made to a request: listed in `x-qwen-proxy-changed`, or refused in strict mode."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from qwen_wsgi.errors import BadRequest

_NOT_IN_HEADERS: Final = re.compile(r"[^!-+\--~]+")
_LONGEST_TOKEN: Final = 100

#: What the header holds, at most.
_MOST_ENTRIES: Final = 20
_MOST_CHARS: Final = 2000


def header_token(word: str) -> str:
    """Make a word fit for an entry of the header: printable ASCII without commas, bounded."""
    return _NOT_IN_HEADERS.sub("_", word[:_LONGEST_TOKEN])


def header(entries: Sequence[str]) -> str:
    """The value of `x-qwen-proxy-changed`: the first entries, and how many more there are.

    Bounded, because nginx refuses an answer whose head is larger than 4 kB (`proxy_buffer_size`).
    """
    shown: list[str] = []
    size = 0
    for entry in entries[:_MOST_ENTRIES]:
        size += len(entry) + 2
        if size > _MOST_CHARS:
            break
        shown.append(entry)
    if more := len(entries) - len(shown):
        shown.append(f"and {more} more")
    return ", ".join(shown)


class Changes:
    """Collects what was changed or dropped of one request; refuses losses in strict mode.

    Args:
        strict: refuse a request that would lose something that the client asked for.
        added: members that a translation added by itself; to lose one of those is not refused.
        names: the client's names for members that a translation renamed.
        reason: text of a refusal between the member's name and `why`, for example
            `cannot be sent as it is: qwen-plus on this host (china) `.
    """

    __slots__ = ("_added", "_entries", "_names", "_reason", "_strict")

    def __init__(
        self,
        *,
        strict: bool = False,
        added: Collection[str] = (),
        reason: str = "",
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._names = names
        self._strict = strict
        self._added = added
        self._reason = reason
        #: In order; a dictionary, because a client decides how many there are.
        self._entries: dict[str, None] = {}

    @property
    def entries(self) -> tuple[str, ...]:
        """`field:what` for each change, in order: printable ASCII without commas."""
        return tuple(self._entries)

    def note(self, field: str, what: str) -> None:
        """List a change that loses nothing the client would miss, or that was allowed before."""
        own = self._names.get(field, field)
        if what == f"as-{own}" or (what.startswith("from-") and what[5:] in self._names):
            return  # undoes the translation: the client's own member
        self._entries[f"{own}:{what}"] = None

    def lose(self, field: str, why: str, *, what: str = "dropped") -> None:
        """List a loss.

        Args:
            why: as for `allow_loss`.

        Raises:
            BadRequest: in strict mode.
        """
        self.allow_loss(field, why)
        self.note(field, what)

    def allow_loss(self, field: str, why: str) -> None:
        """Refuse, in strict mode, to lose what the client asked for with `field`.

        Args:
            why: a verb and what follows it: `has no counterpart in Qwen's API`.

        Raises:
            BadRequest: in strict mode.
        """
        if self._strict and field not in self._added:
            field = self._names.get(field, field)
            raise BadRequest(
                f"'{field}' {self._reason}{why}. With QWEN_PROXY_STRICT=1 such a request is "
                "refused instead of changed.",
                param=field,
                code="unsupported_parameter",
            )
