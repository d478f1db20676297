"""What several boxes know of a login together: the record, and the box that renews it.

Only names and values; `state.redis.logins` keeps them in Redis, and seals the content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class BoardAway(Exception):
    """Redis gave no answer. The text says why, for logs and people."""


class Unsealed(Exception):
    """The record was sealed with another key than ours: it is neither read nor replaced."""


@dataclass(frozen=True)
class Holder:
    """The box that renews a login.

    Attributes:
        box: its id.
        fence: grows each time that the right changes hands; a write with another one is refused.
        keeps: it has qwen-code's file, and renews without Redis too: nobody takes over from it.
        beat: grows each time that one of its workers looks; unchanged for long: it is gone.
        free: it has given up the right.
    """

    box: str
    fence: int
    keeps: bool
    beat: int
    free: bool


@dataclass(frozen=True)
class Seen:
    """What one look at a login showed.

    Attributes:
        version: of the record; another one with every write, and none comes twice, also not after
            a flush. 0: there is none.
        content: None without a record, and when the reader knows that version already.
        problem: why the record cannot be read; "" if it can. Such a record is never replaced.
        spending: `<box> <fingerprint>` of the refresh token that a box was about to send; "".
        wanted: fingerprint of an access token that a box wants replaced; "".
        asks: the box with qwen-code's file that wants to renew; "".
        boxes: that have looked since Redis was started or lost its data: what they knew of the
            login is in the record, and they do not hold what Redis does not know.
        left: of those, the boxes that have stopped in order.
    """

    version: int
    content: bytes | None
    problem: str
    holder: Holder | None
    spending: str
    wanted: str
    asks: str
    boxes: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()


class Board(Protocol):
    """The shared place. Every method is one round trip, and raises `BoardAway`."""

    @property
    def box(self) -> str:
        """This box's id."""

    @property
    def away(self) -> str:
        """Why Redis cannot be used now, as far as is known without asking; "" if it can."""

    def names(self) -> frozenset[str]:
        """The logins that there are."""

    def look(
        self, name: str, *, known: int, fence: int, wanted: str = "", asks: bool = False
    ) -> Seen:
        """See what there is, and say that this box is there: unless it has a right that Redis does
        not know.

        Args:
            known: the version of which the content is known.
            fence: ours; 0 when this box is not the holder.
            wanted: fingerprint of an access token that is to be replaced.
            asks: this box would rather be the holder.
        """

    def put(self, name: str, content: bytes, *, version: int, fence: int) -> int:
        """Write the record; its new version, or 0 if that was refused.

        Args:
            version: that it replaces; refused when it is another one by now.
            fence: for a renewal: refused unless this box is the holder with that fence. 0 for a
                login that no renewal through Redis has made.

        Raises:
            Unsealed: the record there was sealed with another key.
        """

    def mark(self, name: str, *, fence: int, spending: str) -> bool:
        """As the holder: say which refresh token is about to be sent; "" if it was not spent.

        Returns:
            False if this box is not the holder with that fence (any more): do not send.
        """

    def claim(self, name: str, *, seen: Seen, above: int, keeps: bool, force: bool = False) -> int:
        """Become the holder, if nothing has changed since the look; the fence, or 0.

        Args:
            above: the highest fence that is known: the new one is higher, also when Redis forgot.
            force: a person says that the other holder is gone for good.
        """

    def release(self, name: str, *, fence: int, to: str = "") -> None:
        """Give the right up, for everybody or for one box, which has it when it claims it."""

    def leave(self, name: str) -> None:
        """This box stops, and has no right: the others need not wait for it."""
