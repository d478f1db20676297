"""The members by which clients ask for thinking, in chat requests and those like them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from qwen_wsgi.protocol.json_access import Members, mapping

EFFORT: Final = "reasoning_effort"
NESTED: Final = "reasoning"
SWITCH: Final = "enable_thinking"
BUDGET: Final = "thinking_budget"

#: vLLM, SGLang and llama.cpp hand this object to the chat template of the model.
TEMPLATE: Final = "chat_template_kwargs"
#: Switches of other servers: DeepSeek, Zhipu, Moonshot and Anthropic (`{"type": "enabled",
#: "budget_tokens"}`), Ollama (true, or a level), SiliconFlow.
OTHER_SWITCHES: Final = ("thinking", "think", "enable_reasoning")
#: Budgets of other servers: vLLM, llama.cpp (0 is off, -1 no limit).
OTHER_BUDGETS: Final = ("thinking_token_budget", "reasoning_budget", "thinking_budget_tokens")

#: Gemini's, in OpenAI's form of its API: `{"google": {"thinking_config": {…}}}`, as a member
#: `extra_body`, or without it. Clients that mistake `extra_body` for a member of every API put
#: Model Studio's names into it.
EXTRA: Final = "extra_body"
GOOGLE: Final = "google"
HOLDERS: Final = (EXTRA, GOOGLE)
#: Model Studio's names there, and in `chat_template_kwargs`.
OWN_NAMES: Final = (SWITCH, EFFORT, BUDGET, TEMPLATE)

#: All of the others: OpenAI's and Model Studio's, OpenRouter's object, and those of other servers.
ALL: Final = frozenset({EFFORT, NESTED, SWITCH, BUDGET, TEMPLATE, *OTHER_SWITCHES, *OTHER_BUDGETS})


def gemini_config(request: Members) -> dict[str, Any]:
    """Gemini's `thinking_config`; empty if there is none.

    Shape: `{"thinking_budget": 0, "thinking_level": "low", "include_thoughts": true}`, or the same
    in camel case.
    """
    google = mapping(mapping(request.get(EXTRA)).get(GOOGLE)) or mapping(request.get(GOOGLE))
    return mapping(google.get("thinking_config")) or mapping(google.get("thinkingConfig"))


def is_set(request: Members, *, but: Collection[str] = ()) -> bool:
    """Whether a request has a member that asks for thinking, or for none.

    Args:
        but: members that do not count.
    """
    if any(request.get(name) is not None for name in ALL if name not in but):
        return True
    extra = mapping(request.get(EXTRA))
    return bool(gemini_config(request)) or any(extra.get(name) is not None for name in OWN_NAMES)
