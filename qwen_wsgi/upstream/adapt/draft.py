"""Collects what the rules change of one request; the request itself stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.upstream.routing.model_profiles import ModelProfile, profile_of


@dataclass(frozen=True)
class Target:
    """The upstream and model that a request is adapted to.

    Attributes:
        model: the upstream's name for it.
        search: the model's name has the suffix for a web search.
        thinking: the model's name switches thinking on (True) or off (False).
        refused: inputs that the model refused to read before: of `image`, `audio`, `video`.
        flex: it is Batch Chat, which is what `service_tier: "flex"` asks for.
    """

    family: Family
    model: str
    search: bool = False
    thinking: bool | None = None
    refused: frozenset[str] = frozenset()
    flex: bool = False


@dataclass(frozen=True)
class Options:
    """The operator's settings for adapting requests.

    Attributes:
        strict: refuse a request that would lose something the client asked for.
        cache_control: mark what the host should cache, as qwen-code does.
    """

    strict: bool = False
    cache_control: bool = False


@dataclass(frozen=True)
class Adapted:
    """The changes to a request; `changes` and `drop` are for `JsonObject.render`.

    Attributes:
        changed: `Changes.entries`, for the header.
        fan_out: how many calls make up the choices that the client asked for.
        legacy_functions: `functions` became tools, so the answer's tool calls must be turned back
            into a `function_call`.
        renamed: the client's names of tools by those that are sent.
        left_out: inputs that were left out because the model refused them before.
        customs: names, as they are sent, of functions that stand for custom tools.
    """

    changes: Mapping[str, Any]
    drop: frozenset[str]
    changed: tuple[str, ...]
    fan_out: int = 1
    legacy_functions: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    customs: frozenset[str] = frozenset()


UNCHANGED: Final = Adapted(MappingProxyType({}), frozenset(), ())


@dataclass
class ThinkingRequest:
    """What a request wants of the model's thinking.

    Attributes:
        on: switched on or off; None if the request leaves it open.
        effort: one of OpenAI's levels, or None.
        budget: tokens to think with, or None.
    """

    on: bool | None = None
    effort: str | None = None
    budget: int | None = None

    @property
    def wants_thinking(self) -> bool:
        """Whether thinking was requested; a budget alone requests it, too."""
        return self.on or (self.on is None and self.budget is not None)


class Draft:
    """One request while it is adapted to one target.

    Attributes:
        names: the members that the client sent.
        documents: see `ChatRequest.documents`.
        profile: which of them the model supports, or None for an unknown model.
        thinking: what is wanted of the thinking; rules may change it before `thinking.adapt`.
        notes: texts to add to the system message.
        translated, origins: whether the client did not send chat; see `ChatRequest.origins`.
        fan_out, legacy_functions, renamed, left_out, customs: see `Adapted`.
    """

    __slots__ = (
        "_changes",
        "_drop",
        "_values",
        "body",
        "documents",
        "customs",
        "fan_out",
        "left_out",
        "legacy_functions",
        "names",
        "notes",
        "options",
        "origins",
        "stream",
        "target",
        "profile",
        "renamed",
        "thinking",
        "translated",
    )

    def __init__(
        self, request: ChatRequest, target: Target, options: Options, *, stream: bool
    ) -> None:
        self.body = request.body
        self.documents = request.documents
        self.names = frozenset(request.body.names())
        self.target = target
        self.options = options
        self.stream = stream
        self.profile: ModelProfile | None = profile_of(target.model)
        self.thinking = ThinkingRequest()
        self.notes: list[str] = []
        self.fan_out = 1
        self.legacy_functions = False
        self.renamed: Mapping[str, str] = {}
        self.left_out: frozenset[str] = frozenset()
        self.customs = request.customs
        self._values: dict[str, Any] = {}
        self._drop: set[str] = set()
        self.translated = request.origins is not None
        self.origins: Mapping[str, str] = request.origins or {}
        self._changes = Changes(
            strict=options.strict,
            added=request.added,
            names=self.origins,
            reason=_reason(target) if options.strict else "",
        )

    def get(self, name: str) -> Any:
        """A member's value after the changes so far; None if it is missing."""
        if name in self._values:
            return self._values[name]
        return None if name in self._drop else self.body.get(name)

    def has(self, name: str) -> bool:
        """Whether a member is there after the changes so far; null counts."""
        return name in self._values or (name in self.names and name not in self._drop)

    def put(self, name: str, value: Any, what: str) -> None:
        """Replace or add a member; `what` names the change in the header."""
        self._drop.discard(name)
        self._values[name] = value
        self._changes.note(name, what)

    def leave_out(self, name: str, what: str = "dropped") -> None:
        """Drop a member, if it is there."""
        if not self.has(name):
            return
        self._values.pop(name, None)
        if name in self.names:
            self._drop.add(name)
        self._changes.note(name, what)

    def note(self, name: str, what: str) -> None:
        """List what a change of a member is, beside the change itself."""
        self._changes.note(name, what)

    def lose(self, param: str, why: str) -> None:
        """Refuse, in strict mode, to lose what the client asked for with `param`.

        The change itself is listed by `put` or `leave_out`.

        Args:
            why: a verb and what follows it, about the model: `takes no frequency_penalty`.

        Raises:
            BadRequest: in strict mode.
        """
        self._changes.allow_loss(param, why)

    def finish(self) -> Adapted:
        """The changes of all rules together."""
        entries = self._changes.entries
        if not entries and not self.customs:
            return UNCHANGED
        return Adapted(
            self._values,
            frozenset(self._drop),
            entries,
            fan_out=self.fan_out,
            legacy_functions=self.legacy_functions,
            renamed=self.renamed,
            left_out=self.left_out,
            customs=self.customs,
        )


def _reason(target: Target) -> str:
    return f"cannot be sent as it is: {target.model} on this host ({target.family.value}) "
