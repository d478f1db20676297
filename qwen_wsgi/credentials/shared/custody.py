"""Decides which box may renew a shared login, and keeps on disk whether this one may. The rules are
pure; docs/boxes.md and decision 067 say why they are safe.

One box at a time has the right to renew a login, its *custody*, with a fence that grows each time
that it changes hands. There are two kinds:

- A box with qwen-code's file **keeps** it: also without Redis, and nobody takes it over, however
  long that box is silent. It may have spent the refresh token where nobody could hear of it.
- Any other box has it as a **lease**: it renews only while Redis says that the lease is its own;
  when it is silent for longer than LEASE_S, another box takes over.

No rule compares the clocks of two boxes: silence is what a box has itself watched, by its own
monotonic clock.
"""

from __future__ import annotations

import enum
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from qwen_wsgi.credentials.files import durable
from qwen_wsgi.credentials.shared.board import Holder, Seen

log = logging.getLogger(__name__)

#: How long a lease that nobody renews is left alone: three times the longest renewal (26 s), and
#: longer than a login service keeps an idle connection, on which a process that was stopped might
#: still send.
LEASE_S: Final = 90.0
#: How long a right that nobody has, or that was given up, is left alone: every worker of the box
#: that may have it still looks each 5 s.
SETTLE_S: Final = 12.0
#: Two looks with a longer pause between them do not show what happened meanwhile.
WATCHED_S: Final = 30.0


@dataclass(frozen=True)
class Custody:
    """What this box knows of the right to renew one login; in its state directory, for all workers.

    Attributes:
        fence: the highest that was seen.
        box: who had the right with that fence.
        keeps: see `board.Holder`.
        free: it was given up.
        mine: this box has it.
        boxes: the others that take part, but for those that were seen to leave.
    """

    fence: int = 0
    box: str = ""
    keeps: bool = False
    free: bool = False
    mine: bool = False
    boxes: frozenset[str] = frozenset()


class Step(enum.Enum):
    """What this box does about the right."""

    #: It has it, and uses it.
    HOLD = "hold"
    #: It had it; another one has it now.
    DROP = "drop"
    CLAIM = "claim"
    WAIT = "wait"
    #: Hand it to the box with qwen-code's file that asks for it.
    HAND_OVER = "hand_over"
    #: Give it up: this box cannot renew.
    RELEASE = "release"


def learn(me: str, known: Custody, seen: Seen, *, in_step: bool = True) -> Custody:
    """What is known after a look; a Redis that forgot teaches nothing of the right.

    Args:
        in_step: the login here is the shared one: then what boxes knew that have left is here.
    """
    boxes = (known.boxes | seen.boxes) - {me}
    if in_step:
        boxes -= seen.left
    holder = seen.holder
    if holder is None or holder.fence < known.fence:
        return replace(known, boxes=boxes)
    if holder.fence == known.fence and holder.box == known.box:
        return replace(known, keeps=holder.keeps, free=holder.free, boxes=boxes)
    return Custody(holder.fence, holder.box, holder.keeps, holder.free, mine=False, boxes=boxes)


def missing(known: Custody, seen: Seen) -> frozenset[str]:
    """The boxes that have not looked since Redis was started or lost its data.

    Each of them may have renewed the login, or be about to, without a trace in Redis. Without one
    missing, what Redis says is all there is.
    """
    return known.boxes - seen.boxes - seen.left


def decide(
    me: str,
    known: Custody,
    seen: Seen,
    *,
    silent_s: float,
    able: bool,
    keeper: bool,
    fp: str,
    open_attempt: bool = False,
    lease_s: float = LEASE_S,
    settle_s: float = SETTLE_S,
) -> Step:
    """What to do about the right, after a look.

    Args:
        known: before this look.
        silent_s: for how long this process has watched the holder's entry without a change.
        able: this box could renew: its files can be written, and its login is the shared one.
        keeper: it would keep the right, see the module.
        fp: fingerprint of the login's refresh token.
        open_attempt: this box has sent that token, or was about to, and does not know how it ended:
            nobody else may send it, so the right stays here.
    """
    holder = seen.holder
    fence = 0 if holder is None else holder.fence
    if known.mine and fence <= known.fence:
        if holder is not None and holder.fence == known.fence and holder.box == me:
            return Step.HOLD if open_attempt else _held(known, seen, able=able, me=me)
        # Redis was flushed, or restored from an older state. Nobody can have taken it from a box
        # that keeps it; a lease leaves the others time to say what they know.
        waits = not known.keeps and (silent_s < settle_s or bool(missing(known, seen)))
        return Step.WAIT if waits or not able else Step.CLAIM
    if known.mine:
        return Step.DROP
    if not able or missing(known, seen):
        return Step.WAIT
    return _wanted(me, known, seen, silent_s, fp=fp, keeper=keeper, spans=(lease_s, settle_s))


def _held(known: Custody, seen: Seen, *, able: bool, me: str) -> Step:
    if not able:
        return Step.RELEASE
    if seen.asks and seen.asks != me and not known.keeps:
        return Step.HAND_OVER
    return Step.HOLD


def _wanted(
    me: str,
    known: Custody,
    seen: Seen,
    silent_s: float,
    *,
    fp: str,
    keeper: bool,
    spans: tuple[float, float],
) -> Step:
    holder, (lease_s, settle_s) = seen.holder, spans
    forgot = known.fence > (0 if holder is None else holder.fence)
    silent = known.keeps or known.box not in seen.boxes | seen.left
    if forgot and known.box != me and not known.free and silent:
        # Redis does not know any more whose right it is. That box says so when it comes back.
        return Step.WAIT
    if is_being_spent(seen, fp, me):
        return Step.WAIT
    if holder is None:
        return Step.CLAIM if silent_s >= settle_s else Step.WAIT
    if holder.box == me:
        return Step.CLAIM  # handed to us, or given up by another worker of this box
    if holder.free:
        return Step.CLAIM if silent_s >= settle_s else Step.WAIT
    if holder.keeps:
        return Step.WAIT
    return Step.CLAIM if silent_s >= lease_s else Step.WAIT


def is_being_spent(seen: Seen, fp: str, me: str) -> bool:
    """Whether another box was about to send this very refresh token, and has not said how it ended:
    it may have the successor, or be waiting for it."""
    box, _, token = seen.spending.partition(" ")
    return bool(token) and token == fp and box != me


class Silence:
    """How long the holder's entry has been watched without a change, by one process.

    Attributes:
        contact_since_s: since when its looks were never far apart; None before the first.
    """

    def __init__(self) -> None:
        self.contact_since_s: float | None = None
        self._entry: Holder | None = None
        self._since_s = 0.0
        self._last_s = 0.0

    def seen(self, holder: Holder | None, now_s: float) -> float:
        """Note a look; for how long nothing has changed. Seconds, monotonic."""
        watched = self.contact_since_s is not None and now_s - self._last_s <= WATCHED_S
        if not watched:
            self.contact_since_s = now_s
        if not watched or holder != self._entry:
            self._entry, self._since_s = holder, now_s
        self._last_s = now_s
        return now_s - self._since_s

    def contact_s(self, now_s: float) -> float:
        """For how long there has been contact without a long pause; 0 if there is none now."""
        if self.contact_since_s is None or now_s - self._last_s > WATCHED_S:
            return 0.0
        return now_s - self.contact_since_s


class CustodyFile:
    """Keeps a `Custody` in a file of the state directory. Written only under the login's lock
    there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Custody:
        """What is known; nothing, if the file is missing or damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            value = json.loads(self.path.read_bytes())
            return Custody(
                int(value["fence"]),
                str(value["box"]),
                value["keeps"] is True,
                value["free"] is True,
                value["mine"] is True,
                frozenset(map(str, value["boxes"])),
            )
        return Custody()

    def write(self, custody: Custody) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written.
        """
        value = {**asdict(custody), "boxes": sorted(custody.boxes)}
        durable.replace_file(self.path, json.dumps(value).encode())
