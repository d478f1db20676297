"""What goes wrong in a soak: every fault of the sandbox's table that a chat can meet, by chance.

Pure, but for the random numbers that are passed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Of the table: nothing that a chat stream could meet.
_OTHER_TOPICS: Final = frozenset({"token endpoint"})

#: Handles that say what is answered, not what goes wrong with it. Each stream has some of them.
_HANDLES: Final = frozenset(
    {
        "interval",
        "text",
        "chunks",
        "size",
        "lax",
        "prompt-tokens",
        "completion-tokens",
        "cached",
    }
)

#: The answer is no longer the text that was asked for, so that nothing can be said about it.
_OTHER_TEXT: Final = frozenset(
    {
        "long",
        "partial-success",
        "cumulative",
        "dup-first",
        "think-tags",
        "huge-event",
        "finish-only",
        "xml-tools",
    }
)

#: What calls tools; the request offers some.
_TOOLS: Final = "tool"

#: Failures before the first byte: they may as well befall the first attempt alone.
_BEFORE_THE_ANSWER: Final = frozenset(
    {"drop", "reset", "garbage", "half-headers", "hang", "slow-headers", "gateway-timeout"}
    | {"empty-stream", "done-only", "throttle-in-stream", "native-error-event"}
)
_BEFORE_THE_ANSWER_TOPICS: Final = frozenset({"refusals", "other whole answers"})
#: Of those topics: answers all the same.
_ANSWERS: Final = frozenset({"non-stream-json", "stream-anyway"})

_STATUSES: Final = (400, 403, 404, 408, 413, 418, 422, 429, 500, 502, 503, 504, 529)

#: Answers so long that a chunk for each character would be a benchmark of the sandbox.
_LONG: Final = frozenset({"long", "huge-event"})


@dataclass(frozen=True)
class Draw:
    """The faults of one call.

    Attributes:
        names: of the table, as they were chosen.
        always: the spec for all its attempts.
        once: the spec for its first attempt alone, or "".
        exact: an answer that is complete holds the very text that was asked for.
        tools: some of them are about tool calls.
    """

    names: tuple[str, ...]
    always: str
    once: str
    exact: bool
    tools: bool


class Faults:
    """Chooses faults.

    Args:
        listing: what `GET /_sandbox/faults` answers.
        probability: of each fault, for each call.
    """

    def __init__(
        self, listing: Mapping[str, Any], dice: random.Random, *, probability: float
    ) -> None:
        self._dice = dice
        self._probability = probability
        self._topics: dict[str, str] = {
            row["name"]: row["topic"]
            for row in listing["faults"]
            if row["topic"] not in _OTHER_TOPICS and row["name"] not in _HANDLES
        }
        self._counts = {row["name"] for row in listing["faults"] if row["takes"] == "count"}
        self._codes = [
            f"{row['code'].replace('*', 'Soak')}@{row['status']}" for row in listing["errors"]
        ]

    @property
    def names(self) -> Collection[str]:
        """Every fault that may be chosen."""
        return self._topics

    def draw(self, *, long: bool = False) -> Draw:
        """What befalls the next call, whose answer may be long; nothing, for one call in three."""
        dice, probability = self._dice, self._probability
        names = [name for name in self._topics if dice.random() < probability]
        if "split" in names and (long or _LONG.intersection(names)):
            names.remove("split")
        always: list[str] = []
        once: list[str] = []
        for name in names:
            first_only = self._before_the_answer(name) and dice.random() < 0.5
            (once if first_only else always).append(self._spec(name))
        return Draw(
            names=tuple(names),
            always=", ".join(always),
            once=", ".join(once),
            exact=not any(name in _OTHER_TEXT or _is_of_tools(name) for name in names),
            tools=any(map(_is_of_tools, names)),
        )

    def _before_the_answer(self, name: str) -> bool:
        if name in _ANSWERS:
            return False
        return name in _BEFORE_THE_ANSWER or self._topics[name] in _BEFORE_THE_ANSWER_TOPICS

    def _spec(self, name: str) -> str:
        dice = self._dice
        companions: dict[str, Callable[[], str]] = {
            "stall-for": lambda: f"stall-after={dice.randrange(6)}, stall-for=1",
            "heartbeat": lambda: "slow-first=1.5, heartbeat=0.2",
            "error": lambda: f"error={dice.choice(self._codes)}",
            "form": lambda: (
                f"error={dice.choice(self._codes)}, form={dice.choice(('compat', 'native', 'sse'))}"
            ),
            "status": lambda: f"status={dice.choice(_STATUSES)}",
            "message": lambda: "internal, message=of the soak",
            "retry-after": lambda: "throttle, retry-after=1",
            "retry-after-date": lambda: "throttle, retry-after-date=2",
            "reset-in": lambda: "plan-quota, reset-in=2",
            "long": lambda: "long=20000, interval=0.001",
            "tools": lambda: f"tools={dice.randint(1, 3)}",
        }
        if name in companions:
            return companions[name]()
        if name in self._counts and ("after" in name or "mid" in name):
            return f"{name}={dice.randrange(8)}"
        return name


def _is_of_tools(name: str) -> bool:
    return name.startswith(_TOOLS) or name == "null-args"
