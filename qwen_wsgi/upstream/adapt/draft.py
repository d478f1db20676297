"""The sheet on which the rules write what they change; the request itself stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.upstream.routing.model_profiles import ModelProfile, profile_of


@dataclass(frozen=True)
class Target:
    """Who is to answer.

    Attributes:
        model: the upstream's name.
        explicit: the operator named the server by its address, so it is spoken to as the client
            did, whatever it is.
        search: the model's name asked for a web search.
        thinking: the model's name asked for thinking (True) or for none (False).
    """

    family: Family
    model: str
    explicit: bool = False
    search: bool = False
    thinking: bool | None = None


@dataclass(frozen=True)
class Options:
    """What the operator wants.

    Attributes:
        strict: refuse what would lose something that the client asked for.
        cache_control: mark what the host should cache, as qwen-code does.
    """

    strict: bool = False
    cache_control: bool = False


@dataclass(frozen=True)
class Adapted:
    """What becomes of a request; `changes` and `drop` are for `JsonObject.render`.

    Attributes:
        changed: an entry `field:what` for each change, printable ASCII without commas.
        fan_out: how many calls make up the choices that the client asked for.
        legacy_functions: the request has `functions`, OpenAI's form before tools, and the answer
            has to be changed back to that form.
    """

    changes: Mapping[str, Any]
    drop: frozenset[str]
    changed: tuple[str, ...]
    fan_out: int = 1
    legacy_functions: bool = False


NOTHING: Final = Adapted(MappingProxyType({}), frozenset(), ())


@dataclass
class ThinkingRequest:
    """What is wanted of the model's thinking.

    Attributes:
        on: it is to think, or not; None if nobody said.
        effort: one of OpenAI's levels, or None.
        budget: tokens to think with, or None.
    """

    on: bool | None = None
    effort: str | None = None
    budget: int | None = None

    @property
    def asks(self) -> bool:
        """Whether thinking was asked for; who sets a budget for it wants it, too."""
        return self.on or (self.on is None and self.budget is not None)


class Draft:
    """One request on its way to one target.

    Attributes:
        names: the members that the client sent.
        traits: how the model takes them, or None if that is not known.
        wish: what is wanted of the thinking; rules may change it before it is sent.
        notes: what is to be added to the system message.
        fan_out: see `Adapted`.
    """

    __slots__ = (
        "_added",
        "_changed",
        "_changes",
        "_drop",
        "body",
        "fan_out",
        "legacy_functions",
        "names",
        "notes",
        "options",
        "stream",
        "target",
        "traits",
        "wish",
    )

    def __init__(
        self, request: ChatRequest, target: Target, options: Options, *, stream: bool
    ) -> None:
        self.body = request.body
        self.names = frozenset(request.body.names())
        self.target = target
        self.options = options
        self.stream = stream
        self.traits: ModelProfile | None = profile_of(target.model)
        self.wish = ThinkingRequest()
        self.notes: list[str] = []
        self.fan_out = 1
        self.legacy_functions = False
        self._added = request.added
        self._changes: dict[str, Any] = {}
        self._drop: set[str] = set()
        self._changed: list[str] = []

    def get(self, name: str) -> Any:
        """A member's value as it stands now; None if there is none."""
        if name in self._changes:
            return self._changes[name]
        return None if name in self._drop else self.body.get(name)

    def has(self, name: str) -> bool:
        """Whether a member stands there now, if only with null."""
        return name in self._changes or (name in self.names and name not in self._drop)

    def put(self, name: str, value: Any, what: str) -> None:
        """Replace or add a member; `what` says why or how."""
        self._drop.discard(name)
        self._changes[name] = value
        self._changed.append(f"{name}:{what}")

    def leave_out(self, name: str, what: str = "dropped") -> None:
        """Drop a member, if it is there."""
        if not self.has(name):
            return
        self._changes.pop(name, None)
        if name in self.names:
            self._drop.add(name)
        self._changed.append(f"{name}:{what}")

    def lose(self, param: str, why: str) -> None:
        """Say that what the client asked for with `param` will not be had.

        What a translation added of itself nobody misses.

        Args:
            why: a verb and what follows it, about the model: `takes no frequency_penalty`.

        Raises:
            BadRequest: the operator wants such requests refused.
        """
        if self.options.strict and param not in self._added:
            raise BadRequest(
                f"'{param}' cannot be sent as it is: {self.target.model} on this host "
                f"({self.target.family.value}) {why}. With QWEN_PROXY_STRICT=1 such a request is "
                "refused instead of changed.",
                param=param,
                code="unsupported_parameter",
            )

    def finish(self) -> Adapted:
        """What came of it."""
        if not self._changed:
            return NOTHING
        return Adapted(
            self._changes,
            frozenset(self._drop),
            tuple(self._changed),
            fan_out=self.fan_out,
            legacy_functions=self.legacy_functions,
        )
