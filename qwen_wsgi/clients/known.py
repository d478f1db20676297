"""The list of clients with recipes, and the choice of models for them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from os.path import commonprefix
from typing import Any, Final

from qwen_wsgi import text
from qwen_wsgi.clients import agents, programs
from qwen_wsgi.clients.recipe import CHAT, MESSAGES, RESPONSES, Client, Model, Target, is_model_name
from qwen_wsgi.upstream.routing import model_profiles

_CLIENTS: Final = (
    Client("codex", "OpenAI Codex", RESPONSES, True, agents.codex),
    Client("claude-code", "Claude Code", MESSAGES, True, agents.claude_code),
    Client("opencode", "opencode", CHAT, True, agents.opencode),
    Client("aider", "aider", CHAT, True, agents.aider),
    Client("qwen-code", "Qwen Code", CHAT, True, agents.qwen_code),
    Client("open-webui", "Open WebUI", CHAT, False, agents.open_webui),
    Client("continue", "Continue", CHAT, True, agents.continue_),
    Client("cline", "Cline", CHAT, True, agents.cline),
    Client("langchain", "LangChain", CHAT, False, programs.langchain),
    Client("openai-python", "openai for Python", CHAT, False, programs.openai_python),
    Client("openai-node", "openai for Node", CHAT, False, programs.openai_node),
    Client("anthropic-python", "anthropic for Python", MESSAGES, False, programs.anthropic_python),
    Client("vercel-ai-sdk", "Vercel AI SDK", CHAT, False, programs.vercel_ai_sdk),
    Client("curl", "curl", CHAT, False, programs.curl),
)

#: All clients by name, in listing order.
CLIENTS: Final[Mapping[str, Client]] = {client.name: client for client in _CLIENTS}

#: For agents, if no list of models is available.
_AGENT_MODEL: Final = "qwen3-coder-plus"


def nearest(name: str) -> list[str]:
    """Up to three names of clients that may have been meant, the likeliest first."""
    lowered = name.lower()
    containing = [known for known in CLIENTS if lowered and lowered in known]
    alike = difflib.get_close_matches(lowered, CLIENTS, n=3, cutoff=0.5)
    return list(dict.fromkeys(containing + alike))[:3]


def target_for(
    client: Client,
    origin: str,
    models: Iterable[Mapping[str, Any]],
    *,
    model: str = "",
    default: str = "",
) -> Target:
    """Choose what the recipe of a client connects to.

    Args:
        models: the catalogue's entries: `{"id", "context_length"?, "max_output_tokens"?,
            "input_modalities"?}`.
        model: the user's choice.
        default: the operator's choice for clients that name no model.
    """
    listed = {str(each["id"]): each for each in models if is_model_name(str(each["id"]))}
    chosen = model or default or (_for_code(listed) if client.agent else "")
    chosen = chosen or (text.chat_model(listed.values()) if listed else "")
    chosen = chosen or (_AGENT_MODEL if client.agent else text.chat_model(()))
    return Target(origin, _model(chosen, listed), _model(_fast(chosen, listed), listed))


def _model(name: str, listed: Mapping[str, Mapping[str, Any]]) -> Model:
    """Describe a model from the catalogue, or from built-in data if it is not listed."""
    entry = listed.get(name, {})
    facts = model_profiles.facts_of(name) or model_profiles.ModelFacts(None, None)
    inputs = entry.get("input_modalities")
    return Model(
        name,
        context=_tokens(entry.get("context_length")) or facts.context,
        max_output=_tokens(entry.get("max_output_tokens")) or facts.max_output,
        images="image" in (inputs if isinstance(inputs, list) else facts.inputs),
    )


def _for_code(ids: Iterable[str]) -> str:
    return next((id for id in ids if "coder" in id), "")


def _fast(model: str, ids: Iterable[str]) -> str:
    """The fast sibling of a model: the flash model with the most similar name."""
    fast = [id for id in ids if "flash" in id and not any(w in id for w in ("vl", "omni", "mt"))]
    return max(fast, key=lambda id: len(commonprefix((id, model))), default=model)


def _tokens(value: object) -> int | None:
    """A limit from a model list, if it is valid."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return None
