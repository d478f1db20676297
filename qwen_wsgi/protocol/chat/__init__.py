"""Chat completions: the one internal language. Every dialect becomes it, every answer is of it.

`request` reads a request, `stream` watches and repairs a stream of chunks (`normalize`,
`tool_calls`, `template`, `client_view`), `completion` is a whole answer. Pure.
"""

from __future__ import annotations

from qwen_wsgi.protocol.chat.completion import Completion, chunks_of
from qwen_wsgi.protocol.chat.errors import error_of
from qwen_wsgi.protocol.chat.request import ChatRequest, parse_request, upstream_body
from qwen_wsgi.protocol.chat.stream import ChatEncoder, ChunkStream

__all__ = [
    "ChatEncoder",
    "ChatRequest",
    "ChunkStream",
    "Completion",
    "chunks_of",
    "error_of",
    "parse_request",
    "upstream_body",
]
