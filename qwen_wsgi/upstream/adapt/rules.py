"""The rules in their order."""

from __future__ import annotations

from typing import Final

from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.upstream.adapt import formats, messages, parameters, thinking, tools
from qwen_wsgi.upstream.adapt.draft import Adapted, Draft, Options, Target

#: Each leaves alone what does not concern it. What wants the thinking off comes before it is
#: settled, what depends on it or adds to the prompt comes after the rule that decides it.
_RULES: Final = (
    thinking.read,
    tools.settle,
    formats.settle,
    tools.force,
    thinking.settle,
    parameters.settle,
    messages.settle,
)


def adapt(request: ChatRequest, target: Target, options: Options, *, stream: bool) -> Adapted:
    """What must be changed for this target; the request's own values are never touched.

    A server that is no Qwen host, or that the operator named by its address, gets what the client
    sent, but for the place of system messages if the model is a Qwen.

    Args:
        stream: whether the upstream is asked for a stream.

    Raises:
        BadRequest: something that the client asked for would be lost, and `options` are strict.
    """
    draft = Draft(request, target, options, stream=stream)
    if target.explicit or not target.family.is_qwen:
        if "qwen" in target.model.lower():
            messages.systems_first(draft)
        return draft.finish()
    for rule in _RULES:
        rule(draft)
    return draft.finish()
