"""Thinking that a client carries for us, in the place of OpenAI's `encrypted_content`.

A client that stores nothing here (`store: false`: Codex, the AI SDK) asks with `include:
["reasoning.encrypted_content"]` for the thinking in a form that it hands back with the next turn;
some leave out thinking that came without. We have nothing to hide, and say so: the text is the one
of the summary, packed and not encrypted, behind a prefix that names us. What others have packed
cannot be read and is passed over, never refused: the conversation may have begun elsewhere.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from qwen_wsgi.protocol.json_object import compact

_PREFIX: Final = "qwen-proxy-unencrypted-1:"


def sealed(thinking: str) -> str:
    """The thinking as the client carries it: our prefix, and base64 of `{"thinking": "…"}`."""
    return _PREFIX + base64.b64encode(compact({"thinking": thinking}).encode()).decode()


def opened(content: Any) -> str | None:
    """The thinking in what a client hands back; None if it is nothing of ours."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return None
    try:
        value = json.loads(base64.b64decode(content[len(_PREFIX) :], validate=True))
    except (ValueError, RecursionError):
        return None
    thinking = value.get("thinking") if isinstance(value, dict) else None
    return thinking if isinstance(thinking, str) else None
