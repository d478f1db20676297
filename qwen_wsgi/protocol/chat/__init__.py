"""Chat completions: the one internal language, to and from which all dialects are translated.

`request` parses a request; `stream` forwards a stream of chunks (with `normalize`, `tool_calls`,
`template`, `client_view`); `completion` is a whole answer.
"""

from __future__ import annotations

from qwen_wsgi.protocol.chat.completion import Completion, chunks_of
from qwen_wsgi.protocol.chat.errors import error_finish_of, error_of
from qwen_wsgi.protocol.chat.request import ChatRequest, parse_request, upstream_body
from qwen_wsgi.protocol.chat.stream import ChatEncoder, ChunkStream

__all__ = [
    "ChatEncoder",
    "ChatRequest",
    "ChunkStream",
    "Completion",
    "chunks_of",
    "error_finish_of",
    "error_of",
    "parse_request",
    "upstream_body",
]
