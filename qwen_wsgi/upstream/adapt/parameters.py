"""Adapts single parameters: unsupported ones, ranges, lengths, the number of choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.upstream.adapt import thinking
from qwen_wsgi.upstream.adapt.draft import Draft
from qwen_wsgi.upstream.routing import model_profiles

#: Parameters that Model Studio's chat completions page does not list, with their neutral values:
#: to drop one of those, or null, loses nothing.
_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "moderation": (),
    "background": (False,),
    "webhook_config": (),
}

#: Members that change what an answer means, and that no Qwen host can honour in chat.
_REFUSED: Final = frozenset(
    {"container", "conversation", "previous_response_id", "suffix", "thread"}
)

#: Not listed there either, but no answer depends on them: who the user is, how the request is
#: stored and cached, and a guess at the answer by which OpenAI's servers write it faster. To drop
#: them loses nothing, whatever their value.
_HINTS: Final = frozenset(
    {
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "user",
    }
)

#: Seeds have 31 bits there; OpenAI's have 64 and a sign.
_SEED_BITS: Final = 0x7FFF_FFFF


def _temperature(value: float) -> float:
    return 1.99 if value >= 2 else value


def _top_p(value: float) -> float:
    return 0.01 if value == 0 else min(value, 1)


def _penalty(value: float) -> float:
    return max(-2, min(value, 2))


def _top_logprobs(value: float) -> float:
    return min(value, 5)


def _seed(value: float) -> float:
    # Masked, not clamped, so that two seeds stay different.
    return value & _SEED_BITS if isinstance(value, int) else value


#: Ranges of the same page that are narrower than what clients send: the function that clamps a
#: value, and the reason. Values invalid everywhere (a negative temperature) are left to the host.
_RANGES: Final[Mapping[str, tuple[Callable[[float], float], str]]] = {
    "temperature": (_temperature, "takes a temperature below 2"),
    "top_p": (_top_p, "takes a top_p above 0 and up to 1"),
    "presence_penalty": (_penalty, "takes a presence_penalty from -2 to 2"),
    "top_logprobs": (_top_logprobs, "takes top_logprobs up to 5"),
    "seed": (_seed, "takes seeds from 0 to 2147483647"),
}

_LENGTHS: Final = ("max_tokens", "max_completion_tokens")
_CHOICES: Final = 4

_FIELDS: Final = frozenset(
    {*_UNSUPPORTED, *_REFUSED, *_HINTS, *_RANGES, *_LENGTHS, "n", "metadata"}
)


def adapt(draft: Draft) -> None:
    """Apply the rules to the parameters of the request."""
    mentioned = draft.names & _FIELDS
    if not mentioned:
        return
    for name in draft.body.names():
        if name in _RANGES:
            _into_range(draft, name)
        elif name in _REFUSED:
            _refuse(draft, name)
        elif name in _HINTS:
            draft.leave_out(name)
        elif name in _UNSUPPORTED:
            _drop(draft, name, _UNSUPPORTED[name])
    if "metadata" in mentioned and not thinking.is_qwen(draft.target.model):
        # Other vendors' back ends refuse an object there (qwen-code 0.24.4). Also only a hint.
        draft.leave_out("metadata")
    for name in _LENGTHS:
        if name in mentioned:
            _into_limit(draft, name)
    if "max_completion_tokens" in mentioned:
        _old_limit(draft)
    if "n" in mentioned:
        _choices(draft)


def _refuse(draft: Draft, name: str) -> None:
    if draft.get(name) is not None:
        raise BadRequest(
            f"'{name}' is not supported by {draft.target.model} on this host, and the answer would "
            "be another one without it.",
            param=name,
            code="unsupported_parameter",
        )
    draft.leave_out(name)


def _drop(draft: Draft, name: str, neutral: tuple[Any, ...]) -> None:
    value = draft.get(name)
    if name == "service_tier" and value == "flex" and draft.target.flex:
        draft.leave_out(name, "batch-chat")
        return
    if value is not None and value not in neutral:
        draft.lose(name, f"takes no {name}")
    draft.leave_out(name)


def _into_range(draft: Draft, name: str) -> None:
    value = draft.get(name)
    clamp, why = _RANGES[name]
    if _is_number(value) and (clamped := clamp(value)) != value:
        draft.lose(name, why)
        draft.put(name, clamped, "clamped")


def _old_limit(draft: Draft) -> None:
    """Replace `max_completion_tokens` for older models.

    They know only `max_tokens`, which does not count the thinking.
    """
    total, limit = draft.get("max_completion_tokens"), draft.get("max_tokens")
    profile = draft.profile
    if profile is None or profile.total_limit or not _is_number(total):
        return
    if thinking.thinks(draft):
        draft.lose("max_completion_tokens", "limits only what follows the thinking")
    if not _is_number(limit) or limit > total:
        draft.put("max_tokens", total, "from-max_completion_tokens")
    draft.leave_out("max_completion_tokens", "as-max_tokens")


def _into_limit(draft: Draft, name: str) -> None:
    value = draft.get(name)
    known = model_profiles.facts_of(draft.target.model) if draft.profile is not None else None
    most = known and known.max_output
    if most and _is_number(value) and value > most:
        draft.lose(name, f"takes {name} up to {most}")
        draft.put(name, most, "clamped")


def _choices(draft: Draft) -> None:
    """Split several choices into several calls, unless the model gives them in one."""
    count = draft.get("n")
    if type(count) is not int or not 1 < count <= _CHOICES:
        return
    profile = draft.profile
    in_one = profile is not None and profile.several and thinking.thinks(draft) is False
    if not in_one or draft.get("tools"):
        draft.leave_out("n", "fanned-out")
        draft.fan_out = count


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
