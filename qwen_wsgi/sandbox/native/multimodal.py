"""Embeddings of texts, pictures and videos as in Model Studio's native API. Pure, no I/O.

Equal contents have equal vectors; a fused one is derived from all contents together.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.sandbox.chat import estimate_tokens
from qwen_wsgi.sandbox.embeddings import vector
from qwen_wsgi.sandbox.errors import Refusal

Json = dict[str, Any]

_IMAGE_TOKENS: Final = 402
_KINDS: Final = ("text", "image", "video")


@dataclass(frozen=True, slots=True)
class _Model:
    """`numbers`: lengths of vectors, the first is the default; `fusion`: how one vector of several
    contents is made; `usage`: the form of it."""

    numbers: tuple[int, ...]
    contents: int
    images: int
    videos: int
    fusion: str = ""
    usage: str = "details"


_SNAPSHOT: Final = _Model((1152, 1024, 512, 256, 128, 64), 20, 64, 8, "object")
_MODELS: Final = {
    "qwen3-vl-embedding": _Model(
        (2560, 2048, 1536, 1024, 768, 512, 256), 20, 5, 1, "switch", "total"
    ),
    "qwen2.5-vl-embedding": _Model((1024, 2048, 768, 512), 3, 1, 1, "always", "plain"),
    "tongyi-embedding-vision-plus-2026-03-06": _SNAPSHOT,
    "tongyi-embedding-vision-plus": _Model((1152,), 1000, 1000, 1000),
    "tongyi-embedding-vision-flash": _Model((768,), 1000, 1000, 1000),
    "multimodal-embedding-v1": _Model((1024,), 20, 1, 1, "", "plain"),
}


def embed(body: Json) -> Json | Refusal:
    """Return the answer to a request, or a refusal."""
    model = _MODELS.get(str(body.get("model")))
    if model is None:
        return _bad("Model not exist.")
    given, parameters = body.get("input"), body.get("parameters") or {}
    contents = given.get("contents") if isinstance(given, dict) else None
    if not isinstance(contents, list) or not contents:
        return _bad("contents input can not be empty: input.contents")
    contents = [{"text": each} if isinstance(each, str) else each for each in contents]
    if not all(_is_content(each, model) for each in contents):
        return Refusal(500, "InternalError.Algo", "Invalid content.", form="native")
    kinds = Counter(kind for each in contents for kind in each)
    fused = model.fusion == "always" or (
        model.fusion == "switch" and parameters.get("enable_fusion") is True
    )
    if (complaint := _complaint(contents, kinds, parameters, model)) is not None:
        return _bad(complaint)
    numbers = parameters.get("dimension", model.numbers[0])
    rows = [contents] if fused else contents
    return {
        "output": {
            "embeddings": [
                {
                    "index": index,
                    "embedding": list(vector(json.dumps(row, sort_keys=True), numbers)),
                    "type": "fusion" if fused else "fused" if len(row) > 1 else next(iter(row)),
                }
                for index, row in enumerate(rows)
            ]
        },
        "usage": _usage(contents, kinds, model),
        "request_id": str(uuid.uuid4()),
    }


def _is_content(value: Any, model: _Model) -> bool:
    if not isinstance(value, dict) or not value or (len(value) > 1 and model.fusion != "object"):
        return False
    if not all(kind in _KINDS and isinstance(each, str) and each for kind, each in value.items()):
        return False
    return str(value.get("video", "http")).startswith("http")


def _complaint(
    contents: list[Json], kinds: Counter[str], parameters: Json, model: _Model
) -> str | None:
    most = {"text": model.contents, "image": model.images, "video": model.videos}
    if model.fusion == "always":
        most["text"] = 1
    if len(contents) > model.contents or any(kinds[kind] > most[kind] for kind in _KINDS):
        return "batch size is invalid."
    if "dimension" in parameters and model.numbers == (1024,):
        return "dimension is not supported."
    if parameters.get("dimension", model.numbers[0]) not in model.numbers:
        return f"dimension should be one of {sorted(model.numbers)}."
    if "enable_fusion" in parameters and model.fusion != "switch":
        return "enable_fusion is not supported."
    return None


def _usage(contents: list[Json], kinds: Counter[str], model: _Model) -> Json:
    texts = sum(estimate_tokens(each["text"]) for each in contents if "text" in each)
    images = _IMAGE_TOKENS * (kinds["image"] + kinds["video"])
    if model.usage == "details":
        return {
            "input_tokens": texts + images,
            "input_tokens_details": {"image_tokens": images, "text_tokens": texts},
            "output_tokens": len(contents),
            "total_tokens": texts + images + len(contents),
        }
    told = {"input_tokens": texts, "image_tokens": images}
    return {**told, "total_tokens": texts + images} if model.usage == "total" else told


def _bad(text: str) -> Refusal:
    return Refusal(400, "InvalidParameter", text, form="native")
