"""A small request to each endpoint that answers with text: its path, and its body."""

from __future__ import annotations

from typing import Any, Final

Call = tuple[str, dict[str, Any]]

_CHAT: Final = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
_BODIES: Final[dict[str, Call]] = {
    "chat": ("/v1/chat/completions", _CHAT),
    "messages": ("/v1/messages", _CHAT),
    "responses": ("/v1/responses", {"model": "m", "input": "hi"}),
    "completions": ("/v1/completions", {"model": "m", "prompt": "hi"}),
}

#: By dialect and form: `chat, streamed`, `chat, whole`, and so on.
GENERATIONS: Final[dict[str, Call]] = {
    f"{dialect}, {form}": (path, {**body, "stream": True} if form == "streamed" else body)
    for dialect, (path, body) in _BODIES.items()
    for form in ("streamed", "whole")
}
EMBEDDINGS: Final[Call] = ("/v1/embeddings", {"model": "m", "input": "hi"})
