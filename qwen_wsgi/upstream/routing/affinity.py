"""Which conversation a call belongs to, so that it stays on the account that has it in its cache.

Pure. Told by the client where it says so, else guessed by the beginning of the messages, which an
agent sends again with every turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.upstream.routing.cooldown import key_of

#: Headers by which agents name a session (as WSGI spells them): Codex, opencode, Claude Code,
#: OpenRouter's and LiteLLM's clients.
_HEADERS: Final = (
    "HTTP_SESSION_ID",
    "HTTP_X_SESSION_ID",
    "HTTP_X_SESSION_AFFINITY",
    "HTTP_X_CLAUDE_CODE_SESSION_ID",
    "HTTP_CONVERSATION_ID",
    "HTTP_X_CONVERSATION_ID",
    "HTTP_X_OPENWEBUI_CHAT_ID",
)
_METADATA: Final = ("sessionId", "session_id", "conversation_id", "user_id")

#: Of each message so much counts; a system prompt of an agent is longer, and the same for all.
_MOST_CHARS: Final = 16_384


def conversation_of(body: JsonObject, environ: Mapping[str, Any], *, client: str) -> bytes:
    """A short name for the call's conversation, different for each client key."""
    told = _told(body, environ)
    if told is not None:
        return key_of("told", client, told)
    return key_of("begins", client, *_beginning(body.get("messages")))


def _told(body: JsonObject, environ: Mapping[str, Any]) -> str | None:
    named = body.get("prompt_cache_key")
    if isinstance(named, str) and named:
        return named
    for header in _HEADERS:
        if value := environ.get(header):
            return str(value)
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        for name in _METADATA:
            value = metadata.get(name)
            if isinstance(value, str) and value:
                return value
    return None


def _beginning(messages: Any) -> list[str]:
    """All up to the first message of the user: later ones come and go, and answers differ."""
    texts = []
    for message in objects(messages):
        content = message.get("content")
        text = content if isinstance(content, str) else compact(content)
        texts.append(f"{message.get('role')}:{text[:_MOST_CHARS]}")
        if message.get("role") == "user":
            break
    return texts
