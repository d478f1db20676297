"""Anthropic's Messages API, as its SDKs and Claude Code speak it: requests into chat, answers back.

`request` and below it `history`, `blocks` and `tools` make a chat request of a Messages request;
`answer` (a whole) and `stream` tell chat's answer; `errors` and `models` have the other shapes.
From Anthropic's API reference and the official Python SDK (2.12).
"""

from __future__ import annotations

from qwen_wsgi.protocol.messages.answer import whole
from qwen_wsgi.protocol.messages.request import MessagesRequest, parse_prompt, parse_request
from qwen_wsgi.protocol.messages.stream import MessagesEncoder

__all__ = ["MessagesEncoder", "MessagesRequest", "parse_prompt", "parse_request", "whole"]
