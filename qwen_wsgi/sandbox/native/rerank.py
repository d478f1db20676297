"""Ranking as in Model Studio: the compatible route, and the native one. Pure, no I/O.

A document's score is the share of the query's words that it has, so that tests can foresee it.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.sandbox.chat import estimate_tokens
from qwen_wsgi.sandbox.errors import Refusal

Json = dict[str, Any]

_COMPATIBLE: Final = {
    "qwen3-rerank": {"text": 500},
    "qwen3.7-text-rerank": {"text": 500},
}
_NATIVE: Final = {
    "gte-rerank-v2": {"text": 500},
    "qwen3-vl-rerank": {"text": 100, "image": 40, "video": 4},
}
_WORD: Final = re.compile(r"\w+")


def compatible(body: Json) -> Json | Refusal:
    """Answer `/compatible-api/v1/reranks`, or refuse. `return_documents` has no effect there."""
    limits = _COMPATIBLE.get(str(body.get("model")))
    if limits is None:
        text = f"Unsupported model `{body.get('model')}` for OpenAI compatibility mode."
        return Refusal(404, "model_not_supported", text, "invalid_request_error")
    refusal = _refusal(body, body, limits)
    if refusal is not None:
        return refusal
    return {
        "object": "list",
        "results": _ranked(body, body.get("top_n")),
        "model": body["model"],
        "id": str(uuid.uuid4()),
        "usage": {"total_tokens": _tokens(body)},
    }


def native(body: Json) -> Json | Refusal:
    """Answer `/api/v1/services/rerank/text-rerank/text-rerank`, or refuse."""
    limits = _NATIVE.get(str(body.get("model")))
    if limits is None:
        return _bad("Model not exist.")
    asked, parameters = body.get("input"), body.get("parameters") or {}
    if not isinstance(asked, dict) or not isinstance(parameters, dict):
        return _bad("Required parameter input missing from request.")
    refusal = _refusal(asked, parameters, limits)
    if refusal is not None:
        return refusal
    results = _ranked(asked, parameters.get("top_n"))
    if parameters.get("return_documents"):
        for result in results:
            document = asked["documents"][result["index"]]
            result["document"] = {"text": document} if isinstance(document, str) else document
    return {
        "output": {"results": results},
        "usage": {"total_tokens": _tokens(asked)},
        "request_id": str(uuid.uuid4()),
    }


def _refusal(asked: Json, parameters: Json, limits: Mapping[str, int]) -> Refusal | None:
    query, documents = asked.get("query"), asked.get("documents")
    if not isinstance(documents, list) or not documents:
        return _bad("input.documents should not be empty.")
    kinds = Counter(_kind(each, limits) for each in documents)
    if _kind(query, limits) not in ("text", "image") or not _value(query) or None in kinds:
        return _bad("contents is neither str nor list of str.")
    if any(kind is None or found > limits[kind] for kind, found in kinds.items()):
        return _bad(f"batch size is invalid, it should not be larger than {limits}.")
    top_n = parameters.get("top_n", 1)
    if not isinstance(top_n, int) or top_n < 1:
        return _bad("top_n should be greater than 0.")
    return None


def _kind(value: Any, limits: Mapping[str, int]) -> str | None:
    """Which kind of input a value is; None if the model takes no such thing."""
    if isinstance(value, str):
        return "text"
    if len(limits) == 1 or not isinstance(value, dict) or len(value) != 1:
        return None
    ((kind, inner),) = value.items()
    if kind == "video" and not str(inner).startswith("http"):
        return None
    return kind if kind in limits and isinstance(inner, str) else None


def _value(value: Any) -> str:
    return value if isinstance(value, str) else str(next(iter(value.values())))


def _ranked(asked: Json, top_n: int | None) -> list[Json]:
    words = set(_WORD.findall(_value(asked["query"]).lower())) or {""}
    results: list[Json] = []
    for index, document in enumerate(asked["documents"]):
        found = words & set(_WORD.findall(_value(document).lower()))
        results.append({"index": index, "relevance_score": len(found) / len(words)})
    results.sort(key=lambda result: -result["relevance_score"])
    return results[:top_n]


def _tokens(asked: Json) -> int:
    documents = asked["documents"]
    query = estimate_tokens(_value(asked["query"]))
    return query * len(documents) + sum(estimate_tokens(_value(each)) for each in documents)


def _bad(text: str) -> Refusal:
    return Refusal(400, "InvalidParameter", text, form="native")
