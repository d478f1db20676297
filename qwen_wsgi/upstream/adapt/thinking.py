"""Thinking: the many ways to ask for it, brought to the one that the model takes.

Clients say `reasoning_effort` (OpenAI), `reasoning: {effort, enabled, max_tokens}` (OpenRouter) or
Model Studio's own `enable_thinking` and `thinking_budget`. Model Studio refuses an effort beside a
budget, and qwen-code 0.24.4 sends one knob only; so the effort goes before the others.
"""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.upstream.adapt.draft import Draft, ThinkingRequest
from qwen_wsgi.upstream.routing.model_profiles import ModelProfile

EFFORT: Final = "reasoning_effort"
NESTED: Final = "reasoning"
SWITCH: Final = "enable_thinking"
BUDGET: Final = "thinking_budget"
KNOBS: Final = frozenset({EFFORT, NESTED, SWITCH, BUDGET})

_LEVELS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

#: What an effort means to models that know budgets only: Model Studio's own numbers for Qwen3.8.
#: From `high` on the model's own limit holds, which is the host's default.
_BUDGETS: Final = {"minimal": 4096, "low": 4096, "medium": 16384}

#: Of a model that is not known only the rules of the hosts hold: an effort, if any, goes alone.
_UNKNOWN: Final = ModelProfile(thinks=None, efforts={level: level for level in _LEVELS})
_UNKNOWN_QWEN: Final = ModelProfile(thinks=None, switch=True, budget=True, efforts=_UNKNOWN.efforts)


def read(draft: Draft) -> None:
    """Note what the request, or the model's name before it, asks for."""
    flag = draft.target.thinking
    if draft.names.isdisjoint(KNOBS):
        draft.wish = ThinkingRequest(on=flag)
        return
    nested = draft.get(NESTED)
    nested = nested if isinstance(nested, dict) else {}
    effort = _first(draft.get(EFFORT), nested.get("effort"), _LEVELS)
    switch = _first(draft.get(SWITCH), nested.get("enabled"), (True, False))
    budget = draft.get(BUDGET)
    if budget is None and type(nested.get("max_tokens")) is int:
        budget = nested["max_tokens"]
    on = switch if effort is None else effort != "none"
    if flag is not None:
        on = flag
        if flag == (effort == "none"):
            effort = None
    draft.wish = ThinkingRequest(on, effort, budget)


def _first(outer: Any, inner: Any, known: tuple[Any, ...]) -> Any:
    """The first of two values that is one of those that are known, or None."""
    kind = type(known[0])
    return next((each for each in (outer, inner) if type(each) is kind and each in known), None)


def traits_of(draft: Draft) -> ModelProfile:
    """The model's traits as far as thinking goes."""
    if draft.traits is not None:
        return draft.traits
    return _UNKNOWN_QWEN if is_qwen(draft.target.model) else _UNKNOWN


def is_qwen(model: str) -> bool:
    """Whether a model takes what only Qwen takes: qwen-code's test, `qwen*` and `coder-model`."""
    name = model.rsplit("/", 1)[-1].lower()
    return name.startswith("qwen") or name == "coder-model"


def thinks(draft: Draft) -> bool | None:
    """Whether the model will think, as things stand; None if that is not known."""
    traits = traits_of(draft)
    if draft.wish.on is None or not traits.switch:
        return traits.thinks
    return draft.wish.on


def settle(draft: Draft) -> None:
    """Send the wish in the model's own words; a request without one stays as it is."""
    wish = draft.wish
    if wish.on is None and draft.names.isdisjoint(KNOBS):
        return
    traits = traits_of(draft)
    if wish.on is True and traits.thinks is False and not traits.switch:
        draft.lose(_param(draft), "does not think")
    if wish.on is False and traits.thinks is True and not traits.switch:
        draft.lose(_param(draft), "cannot answer without thinking")
    knobs = _knobs(draft, wish, traits)
    if isinstance(draft.get(NESTED), dict):
        knobs[NESTED] = None
        if wish.budget is not None and traits.budget:
            knobs.setdefault(BUDGET, wish.budget)
    for name, value in knobs.items():
        if value is None:
            draft.leave_out(name)
        elif type(draft.get(name)) is not type(value) or draft.get(name) != value:
            draft.put(name, value, str(value).lower())


def _knobs(draft: Draft, wish: ThinkingRequest, traits: ModelProfile) -> dict[str, Any]:
    """The knobs that must be set, or with None not be sent; those that are missing may stay."""
    level = None if wish.effort is None else traits.efforts.get(wish.effort)
    if level is not None:
        if wish.budget is not None and level != "none":
            draft.lose(
                BUDGET if BUDGET in draft.names else NESTED, f"takes either {EFFORT} or {BUDGET}"
            )
        return {EFFORT: level, SWITCH: None, BUDGET: None}
    if wish.on is None:
        return {}
    if traits.switch:
        return _switched(wish, traits)
    knobs: dict[str, Any] = {}
    if wish.effort is not None:
        knobs[EFFORT] = None
    if traits.thinks is not None and draft.get(SWITCH) is (not traits.thinks):
        knobs[SWITCH] = None
    return knobs


def _switched(wish: ThinkingRequest, traits: ModelProfile) -> dict[str, Any]:
    if wish.on is False:
        return {SWITCH: False, EFFORT: None, BUDGET: None}
    knobs: dict[str, Any] = {SWITCH: True, EFFORT: None}
    budget = _BUDGETS.get(wish.effort or "") if traits.budget else None
    if wish.budget is None and budget is not None:
        knobs[BUDGET] = budget
    return knobs


def _param(draft: Draft) -> str:
    """The member that asks for thinking; the model's name may do so as well."""
    names = (EFFORT, NESTED, SWITCH)
    return next((name for name in names if draft.body.get(name) is not None), "model")
