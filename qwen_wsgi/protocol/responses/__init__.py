"""OpenAI's Responses API: its requests as chat requests, chat's answers as responses.

`request` reads requests (`items`, `stored_form`, `conversation`, `content`, `tools`, `parameters`),
`encoder` tells answers (`output`, `events`, `told`, `failure`).
"""

from __future__ import annotations

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
    "parse_request",
    "previous_of",
    "whole",
]
