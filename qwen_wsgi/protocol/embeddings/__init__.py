"""Embeddings: OpenAI's request into Model Studio's calls, and their answers into one."""

from __future__ import annotations

from qwen_wsgi.protocol.embeddings.answer import combine
from qwen_wsgi.protocol.embeddings.calls import Calls, calls_for
from qwen_wsgi.protocol.embeddings.multimodal import takes_media
from qwen_wsgi.protocol.embeddings.request import MAX_ROWS, EmbeddingRequest, parse_request

__all__ = [
    "MAX_ROWS",
    "Calls",
    "EmbeddingRequest",
    "calls_for",
    "combine",
    "parse_request",
    "takes_media",
]
