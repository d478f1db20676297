"""Which account has a conversation in its cache, shared by all workers.

A conversation is named by the client where it says so, else recognised by the beginning of its
messages, which an agent sends again with every turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final

from qwen_wsgi.clock import boottime
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import JsonObject, compact_start
from qwen_wsgi.state.shared_files import SharedFiles, Table, key_of

_VERSION: Final = "1"
#: Conversation, account, time of its latest call.
_ROW: Final = Struct("=8s8sd")
_ROWS: Final = 4096
#: A conversation is remembered for as long as any upstream keeps its cache.
AFFINITY_S: Final = 3600.0
#: Other boxes are told again that a conversation goes on, so that they remember it as long.
TELL_AGAIN_S: Final = 900.0

#: Headers by which agents name a session (as WSGI spells them): Codex, opencode, Claude Code,
#: OpenRouter's and LiteLLM's clients.
HEADERS: Final = (
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


class Affinity:
    """Remembers which account served a conversation last.

    Args:
        files, boottime: as for `cooldown.Cooldowns`.

    Attributes:
        changed: the conversations of which other boxes are to be told; None where there are none.
    """

    def __init__(
        self, files: SharedFiles | None, *, boottime: Callable[[], float] = boottime
    ) -> None:
        self._now = boottime
        self.changed: dict[bytes, bytes] | None = None
        #: What the others know: whom, and when they were told.
        self._known: dict[bytes, tuple[bytes, float]] = {}
        self._table = Table(files, "affinity", _ROW, version=_VERSION, rows=_ROWS, age=2)

    def account_of(self, conversation: bytes) -> bytes | None:
        """The account that served a conversation lately, as it was given to `remember`."""
        row = self._table.get(conversation)
        if row is None:
            return None
        _, account, when = row
        return account if 0 <= self._now() - when < AFFINITY_S else None

    def remember(self, conversation: bytes, account: bytes) -> None:
        """Record who serves a conversation now."""
        now = self._now()
        self._table.put(conversation, account, now)
        if self.changed is not None:
            known, told_at = self._known.get(conversation, (b"", 0.0))
            if known != account or now - told_at > TELL_AGAIN_S:
                self._know(conversation, account, now)
                self.changed[conversation] = account
                if len(self.changed) > _ROWS:
                    del self.changed[next(iter(self.changed))]

    def adopt(self, conversation: bytes, account: bytes, age_s: float) -> None:
        """Know what another box has told, unless something newer is known here."""
        when = self._now() - age_s
        row = self._table.get(conversation)
        if age_s < AFFINITY_S and (row is None or row[2] < when):
            self._table.put(conversation, account, when)
            self._know(conversation, account, when)

    def _know(self, conversation: bytes, account: bytes, when: float) -> None:
        self._known.pop(conversation, None)
        self._known[conversation] = account, when
        if len(self._known) > _ROWS:
            del self._known[next(iter(self._known))]


def conversation_key(body: JsonObject, environ: Mapping[str, Any], *, client: str) -> bytes:
    """A short name for the call's conversation, different for each client key."""
    named = _named(body, environ)
    if named is not None:
        return key_of("named", client, named)
    return key_of("begins", client, *_beginning(body.get("messages")))


def evidence_of(conversation: bytes, body: JsonObject) -> bytes:
    """Names a request for `Cooldowns.record_failure`: 4 bytes of its conversation, 4 of itself.

    Of a request only its last message counts, or how it begins where there is none: what clients
    add to a repetition (a new session, a time) does not make it another one.

    Args:
        conversation: its key; empty if there is none, then each request is one.
    """
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        request = key_of("message", compact_start(messages[-1], _MOST_CHARS))
    else:
        request = key_of("body", body.render()[:_MOST_CHARS].decode(errors="replace"))
    return (conversation or request)[:4] + request[:4]


def _named(body: JsonObject, environ: Mapping[str, Any]) -> str | None:
    named = body.get("prompt_cache_key")
    if isinstance(named, str) and named:
        return named
    for header in HEADERS:
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
        text = content if isinstance(content, str) else compact_start(content, _MOST_CHARS)
        texts.append(f"{message.get('role')}:{text[:_MOST_CHARS]}")
        if message.get("role") == "user":
            break
    return texts
