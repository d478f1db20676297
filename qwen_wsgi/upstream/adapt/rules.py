"""Applies the rules in their order."""

from __future__ import annotations

from typing import Final

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.upstream.adapt import (
    formats,
    media,
    messages,
    other_hosts,
    parameters,
    thinking,
    tool_names,
    tools,
)
from qwen_wsgi.upstream.adapt.draft import UNCHANGED, Adapted, Draft, Options, Target

#: Rules that may switch thinking off run before `thinking.adapt` sends the switch; rules that
#: depend on the thinking, or use notes for the prompt, run after those that decide them.
_RULES: Final = (
    media.adapt,
    thinking.read,
    tools.adapt,
    formats.adapt,
    tools.adapt_choice,
    thinking.adapt,
    parameters.adapt,
    messages.adapt,
    tool_names.adapt,
)


def leaves_alone(request: ChatRequest, family: Family, model: str, refused: frozenset[str]) -> bool:
    """Whether a host gets what the client sent, with no look at it, see `adapt`."""
    foreign = family is Family.OTHER  # `not is_qwen`, without a call
    return foreign and request.origins is None and not refused and "qwen" not in model.lower()


def adapt(request: ChatRequest, target: Target, options: Options, *, stream: bool) -> Adapted:
    """Return the changes that this target needs; the request's own values are never modified.

    A host that is not Qwen's gets what the client sent, except that system messages move to the
    front if the model is a Qwen, that a translated request is made a plain one, and that pictures
    which the model refused are left out.

    Args:
        stream: whether the upstream will be asked for a stream.

    Raises:
        BadRequest: in strict mode, if something that the client asked for would be lost.
    """
    if leaves_alone(request, target.family, target.model, target.refused):
        return UNCHANGED
    draft = Draft(request, target, options, stream=stream)
    if target.family is Family.OTHER:
        if "qwen" in target.model.lower():
            messages.systems_first(draft)
        media.leave_out_refused(draft)
        other_hosts.adapt(draft)
        tool_names.adapt_translated(draft)
        return draft.finish()
    for rule in _RULES:
        rule(draft)
    return draft.finish()
