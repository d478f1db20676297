"""OpenAI's Responses API: translates its requests to chat, and chat's answers to responses.

`request` translates a request with `items`, `conversation`, `content`, `tools` and `parameters`;
`compaction` is about summaries of long conversations, `catalogue` about the list of models.
`background` is about those that nobody waits for. `encoder` encodes the answer with `output`,
`events` and `mapping`.
"""

from __future__ import annotations

from qwen_wsgi.protocol.responses import background
from qwen_wsgi.protocol.responses.encoder import ResponseEncoder, whole
from qwen_wsgi.protocol.responses.request import (
    Previous,
    ResponsesRequest,
    parse_request,
    previous_of,
)

__all__ = [
    "Previous",
    "ResponseEncoder",
    "ResponsesRequest",
    "background",
    "parse_request",
    "previous_of",
    "whole",
]
