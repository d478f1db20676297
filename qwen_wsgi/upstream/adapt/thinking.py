"""Adapts the parameters for thinking: of the many that clients send to the one the model takes.

Clients send `reasoning_effort` (OpenAI), `reasoning: {effort, enabled, max_tokens}` (OpenRouter) or
Model Studio's own `enable_thinking` and `thinking_budget`. Model Studio refuses an effort beside a
budget, and qwen-code 0.24.4 sends only one of them; so the effort has precedence. Names that other
servers have for the same come last; the hosts here ignore those, so they are never sent.
"""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.translation.thinking import (
    ALL,
    BUDGET,
    EFFORT,
    EXTRA,
    GOOGLE,
    HOLDERS,
    NESTED,
    OTHER_BUDGETS,
    OTHER_SWITCHES,
    OWN_NAMES,
    SWITCH,
    TEMPLATE,
    gemini_config,
)
from qwen_wsgi.upstream.adapt.draft import Draft, ThinkingRequest
from qwen_wsgi.upstream.routing.model_profiles import ModelProfile

#: Where the thinking is shown, not whether there is any: OpenRouter, SGLang, Groq and llama.cpp.
_SHOWN: Final = frozenset(
    {"include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format"}
)
FOREIGN: Final = frozenset({TEMPLATE, *OTHER_SWITCHES, *OTHER_BUDGETS, *_SHOWN, *HOLDERS})
KNOBS: Final = ALL | FOREIGN

_LEVELS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

#: Budgets that stand for an effort at models that know only budgets: Model Studio's numbers for
#: Qwen3.8.
#: From `high` on the model's own limit applies, which is the host's default.
_BUDGETS: Final = {"minimal": 4096, "low": 4096, "medium": 16384}

#: Members of `chat_template_kwargs` that are translated.
_UNDERSTOOD: Final = frozenset({SWITCH, "thinking", EFFORT, BUDGET})

#: For an unknown model only the hosts' rules apply: an effort is sent without a budget.
_UNKNOWN: Final = ModelProfile(thinks=None, efforts={level: level for level in _LEVELS})
_UNKNOWN_QWEN: Final = ModelProfile(thinks=None, switch=True, budget=True, efforts=_UNKNOWN.efforts)


def read(draft: Draft) -> None:
    """Read what the request wants of the thinking; the model's name has precedence."""
    flag = draft.target.thinking
    if draft.names.isdisjoint(KNOBS):
        draft.thinking = ThinkingRequest(on=flag)
        return
    nested = draft.get(NESTED)
    nested = nested if isinstance(nested, dict) else {}
    effort = _first(draft.get(EFFORT), nested.get("effort"), _LEVELS)
    switch = _first(draft.get(SWITCH), nested.get("enabled"), (True, False))
    budget = draft.get(BUDGET)
    if budget is None and type(nested.get("max_tokens")) is int:
        budget = nested["max_tokens"]
    if not draft.names.isdisjoint(FOREIGN):
        other = _foreign(draft)
        if effort is None and switch is None:
            effort, switch = other.effort, other.on
        budget = other.budget if budget is None else budget
    on = switch if effort is None else effort != "none"
    if flag is not None:
        on = flag
        if flag == (effort == "none"):
            effort = None
    draft.thinking = ThinkingRequest(on, effort, budget)


def _foreign(draft: Draft) -> ThinkingRequest:
    """Read the switches that other servers have."""
    wanted = ThinkingRequest()
    extra = json_access.mapping(draft.get(EXTRA))
    for template in (draft.get(TEMPLATE), extra, extra.get(TEMPLATE)):
        if isinstance(template, dict):
            # Qwen's templates have the first, DeepSeek's and Kimi's the second, gpt-oss the third.
            on = _first(template.get(SWITCH), template.get("thinking"), (True, False))
            wanted.on = on if wanted.on is None else wanted.on
            wanted.effort = wanted.effort or _first(template.get(EFFORT), None, _LEVELS)
            wanted.budget = _first_count(wanted.budget, template.get(BUDGET))
    _gemini(draft, wanted)
    for name in OTHER_SWITCHES:
        value = draft.get(name)
        if isinstance(value, dict):
            kind = value.get("type")
            value = {"enabled": True, "adaptive": True, "disabled": False}.get(str(kind))
            wanted.budget = _first_count(wanted.budget, draft.get(name).get("budget_tokens"))
        if isinstance(value, bool) and wanted.on is None:
            wanted.on = value
        elif value in _LEVELS and wanted.effort is None:
            wanted.effort = value
    for name in OTHER_BUDGETS:
        budget = draft.get(name)
        if type(budget) is int and budget == 0 and wanted.on is None:
            wanted.on = False
        wanted.budget = _first_count(wanted.budget, budget)
    return wanted


def _gemini(draft: Draft, wanted: ThinkingRequest) -> None:
    """Read Gemini's switch, whose budgets of 0 and -1 are "off" and "as the model likes"."""
    if not (config := gemini_config(draft)):
        return
    budget = config.get("thinking_budget", config.get("thinkingBudget"))
    level = config.get("thinking_level", config.get("thinkingLevel"))
    if type(budget) is int and wanted.on is None and budget <= 0:
        wanted.on = budget != 0
    wanted.budget = _first_count(wanted.budget, budget)
    if isinstance(level, str) and level.lower() in _LEVELS:
        wanted.effort = wanted.effort or level.lower()


def _first_count(*values: Any) -> int | None:
    return next((each for each in values if type(each) is int and each > 0), None)


def _first(outer: Any, inner: Any, known: tuple[Any, ...]) -> Any:
    """The first of two values that is one of the known ones, or None."""
    kind = type(known[0])
    return next((each for each in (outer, inner) if type(each) is kind and each in known), None)


def thinking_profile(draft: Draft) -> ModelProfile:
    """The model's profile for thinking; a cautious one for an unknown model."""
    if draft.profile is not None:
        return draft.profile
    return _UNKNOWN_QWEN if is_qwen(draft.target.model) else _UNKNOWN


def is_qwen(model: str) -> bool:
    """Whether a model takes Qwen's own parameters: qwen-code's test, `qwen*` and `coder-model`."""
    name = model.rsplit("/", 1)[-1].lower()
    return name.startswith("qwen") or name == "coder-model"


def thinks(draft: Draft) -> bool | None:
    """Whether the model will think after the changes so far; None if that is unknown."""
    profile = thinking_profile(draft)
    if draft.thinking.on is None or not profile.switch:
        return profile.thinks
    return draft.thinking.on


def adapt(draft: Draft) -> None:
    """Set the parameters that the model takes; a request without any of them is not changed."""
    wanted = draft.thinking
    if wanted.on is None and draft.names.isdisjoint(KNOBS):
        return
    profile = thinking_profile(draft)
    if wanted.wants_thinking and profile.thinks is False and not profile.switch:
        draft.lose(_param(draft), "does not think")
    if wanted.on is False and profile.thinks is True and not profile.switch:
        draft.lose(_param(draft), "cannot answer without thinking")
    knobs = _knobs(draft, wanted, profile)
    foreign = [] if draft.names.isdisjoint(FOREIGN) else _not_sent(draft)
    unknown = profile.thinks is None and not profile.switch and wanted.effort is None
    if wanted.on is not None and unknown and _param(draft) in foreign:
        draft.lose(_param(draft), "is not known to have a switch for its thinking")
    if isinstance(draft.get(NESTED), dict):
        foreign.append(NESTED)
    if foreign:
        knobs |= dict.fromkeys(foreign)
        if wanted.budget is not None and profile.budget:
            knobs.setdefault(BUDGET, wanted.budget)
    for name, value in knobs.items():
        if value is None:
            draft.leave_out(name)
        elif type(draft.get(name)) is not type(value) or draft.get(name) != value:
            draft.put(name, value, str(value).lower())


def _not_sent(draft: Draft) -> list[str]:
    """The members of other servers that are in the request."""
    names = [name for name in draft.body.names() if name in FOREIGN]
    if not draft.names.isdisjoint(HOLDERS):
        names = _without_others(draft, names)
    if "thinking" in names and draft.target.model.lower().startswith("minimax-m3"):
        names.remove("thinking")  # it has this switch on Model Studio, too
    template = draft.get(TEMPLATE)
    if isinstance(template, dict) and not template.keys() <= _UNDERSTOOD:
        draft.lose(TEMPLATE, f"takes no {TEMPLATE}")
    if draft.get("include_reasoning") is False:
        draft.lose("include_reasoning", "does not hide its thinking")
    return names


def _without_others(draft: Draft, names: list[str]) -> list[str]:
    """The names without Gemini's holders if those are about something else than thinking."""
    config, extra = gemini_config(draft), json_access.mapping(draft.get(EXTRA))
    if not config and extra.keys().isdisjoint(OWN_NAMES):
        return [name for name in names if name not in HOLDERS]
    holder = EXTRA if EXTRA in names else GOOGLE
    google = json_access.mapping(extra.get(GOOGLE)) or json_access.mapping(draft.get(GOOGLE))
    others = (google.keys() - {"thinking_config", "thinkingConfig"}) | (
        extra.keys() - {GOOGLE, *OWN_NAMES}
    )
    if others:
        draft.lose(holder, f"takes no {header_token(min(others))}")
    if config.get("include_thoughts", config.get("includeThoughts")) is False:
        draft.lose(holder, "does not hide its thinking")
    return names


def _knobs(draft: Draft, wanted: ThinkingRequest, profile: ModelProfile) -> dict[str, Any]:
    """The parameters to set, or with None to drop; all others may stay as they are."""
    if profile.thinks is False and not profile.switch and not profile.efforts:
        # Nothing is left of thinking at a model that cannot; to switch it off is harmless there.
        off = draft.get(SWITCH) is False
        return {EFFORT: None, BUDGET: None, **({} if off else {SWITCH: None})}
    level = None if wanted.effort is None else profile.efforts.get(wanted.effort)
    if level is not None:
        if wanted.budget is not None and level != "none":
            draft.lose(
                BUDGET if BUDGET in draft.names else NESTED, f"takes either {EFFORT} or {BUDGET}"
            )
        return {EFFORT: level, SWITCH: None, BUDGET: None}
    if wanted.on is None:
        return {}
    if profile.switch:
        return _switched(wanted, profile)
    knobs: dict[str, Any] = {}
    if wanted.effort is not None:
        knobs[EFFORT] = None
    if profile.thinks is not None and draft.get(SWITCH) is (not profile.thinks):
        knobs[SWITCH] = None
    return knobs


def _switched(wanted: ThinkingRequest, profile: ModelProfile) -> dict[str, Any]:
    if wanted.on is False:
        return {SWITCH: False, EFFORT: None, BUDGET: None}
    knobs: dict[str, Any] = {SWITCH: True, EFFORT: None}
    budget = _BUDGETS.get(wanted.effort or "") if profile.budget else None
    if wanted.budget is None and budget is not None:
        knobs[BUDGET] = budget
    return knobs


def _param(draft: Draft) -> str:
    """The member that requests thinking, or `model` if the model's name does."""
    names = (EFFORT, NESTED, SWITCH, BUDGET, TEMPLATE, *OTHER_SWITCHES, *OTHER_BUDGETS, *HOLDERS)
    return next((name for name in names if draft.body.get(name) is not None), "model")
