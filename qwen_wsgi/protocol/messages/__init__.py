"""Anthropic's Messages API: translates its requests to chat, and chat's answers to messages.

`request` translates a request with `history`, `blocks` and `tools`; `answer` renders a whole answer
and `stream` encodes a streamed one; `turns` encodes those in which the proxy runs tools
(`server_tools`); `errors` and `models` render the other bodies. Sources:
Anthropic's API reference, the official Python SDK (2.12) and Claude Code.
"""

from __future__ import annotations

from qwen_wsgi.protocol.messages.answer import whole
from qwen_wsgi.protocol.messages.request import MessagesRequest, parse_prompt, parse_request
from qwen_wsgi.protocol.messages.stream import MessagesEncoder
from qwen_wsgi.protocol.messages.turns import TurnsEncoder

__all__ = [
    "MessagesEncoder",
    "MessagesRequest",
    "TurnsEncoder",
    "parse_prompt",
    "parse_request",
    "whole",
]
