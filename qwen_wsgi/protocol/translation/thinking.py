"""Names of the members by which clients ask for thinking, in chat requests and those like them."""

from __future__ import annotations

from typing import Final

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

#: All of them: OpenAI's and Model Studio's, OpenRouter's object, and those of other servers.
ALL: Final = frozenset({EFFORT, NESTED, SWITCH, BUDGET, TEMPLATE, *OTHER_SWITCHES, *OTHER_BUDGETS})
