"""The model list of the sandbox. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

# Real ids (late 2026), so that limits and quirks that depend on the id apply.
DEFAULT_MODELS: Final = (
    "qwen3.8-max",
    "qwen3.8-flash",
    "qwen3.7-max",
    "qwen3.7-plus",
    "qwen3.6-plus",
    "qwen-plus",
    "qwen-flash",
    "qwen3-coder-plus",
    "qwen3-coder-flash",
    "qwen3-vl-plus",
    "coder-model",
    "text-embedding-v4",
    "text-embedding-v3",
    "qwen-image-3.0",
    "qwen-image-max",
    "qwen-image-edit-plus",
    "wan2.7-image",
    "wan2.5-t2i-preview",
    "wan3.0-video",
    "wan2.7-t2v",
    "wan2.7-i2v",
    "wan2.5-t2v-preview",
    "qwen3-tts-flash",
    "qwen-audio-3.1-tts-flash",
    "qwen3-asr-flash",
    "qwen-audio-3.1-asr-flash",
    "fun-asr",
    "qwen3-asr-flash-filetrans",
    "qwen3.7-text-embedding",
    "qwen3-vl-embedding",
    "tongyi-embedding-vision-plus",
    "qwen3-rerank",
    "qwen3-vl-rerank",
)
_CREATED_S: Final = 1767225600


def model_list(ids: Iterable[str]) -> dict[str, Any]:
    """Return the body of `GET /models`."""
    return {"object": "list", "data": [model_entry(identity) for identity in ids]}


def model_entry(identity: str) -> dict[str, Any]:
    return {"id": identity, "object": "model", "created": _CREATED_S, "owned_by": "system"}
