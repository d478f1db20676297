"""Ranks documents: the request of Cohere and Jina into Model Studio's, and its answer back.

Model Studio has two routes: `/compatible-api/v1/reranks` for models of texts, and the native one
for `qwen3-vl-rerank` and `gte-rerank-v2` (vendor's text rerank API, May 2026).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeGuard

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.content_parts import IMAGE, TEXT, VIDEO, Part, text_or_object
from qwen_wsgi.protocol.json_access import integer, items, mapping, text
from qwen_wsgi.protocol.json_object import JsonObject, compact
from qwen_wsgi.protocol.validation import count, flag, missing, model_of, number, wrong_type
from qwen_wsgi.protocol.validation import text as text_member

#: Behind the host's name. `/compatible-mode/v1/reranks` is a dead route.
COMPATIBLE_PATH: Final = "/compatible-api/v1/reranks"
NATIVE_PATH: Final = "/api/v1/services/rerank/text-rerank/text-rerank"

#: Documents of one request: what no model takes more of.
MAX_DOCUMENTS: Final = 500

_SOME_MODEL: Final = "`qwen3-vl-rerank` ranks pictures and videos"

#: Members that tell of the caller or of its place in a queue: to drop them loses nothing.
_HINTS: Final = frozenset({"user", "priority"})
_READ: Final = frozenset(
    {"model", "query", "documents", "top_n", "return_documents", "instruct", "instruction"}
)


@dataclass(frozen=True)
class RerankRequest:
    """A checked request.

    Attributes:
        documents: one part for each.
        given: the documents as the client sent them.
        top_n: how many results there will be.
        return_documents: None where the client does not say.
        instruct: what the ranking is for, in words; None is a search for answers.
        instruct_name: the client's name for it.
    """

    body: JsonObject
    model: str
    query: Part
    documents: tuple[Part, ...]
    given: list[Any]
    top_n: int
    return_documents: bool | None
    instruct: str | None
    instruct_name: str


class Call(NamedTuple):
    """What is sent to a Model Studio host: the path behind its name, the body, and what was changed
    (`Changes.entries`)."""

    path: str
    body: bytes
    changed: tuple[str, ...]


# --- the request ---------------------------------------------------------------------------------


def parse_request(body: JsonObject) -> RerankRequest:
    """Check a request.

    Raises:
        BadRequest: it has no query or no documents, too many of them, or one that is no document.
    """
    given = _documents(body)
    name = "instruct" if body.get("instruct") is not None else "instruction"
    return RerankRequest(
        body,
        model_of(body),
        _query(body),
        tuple(_document(each, f"documents[{index}]") for index, each in enumerate(given)),
        given,
        min(count(body, "top_n", least=1) or len(given), len(given)),
        flag(body, "return_documents"),
        text_member(body, name),
        name,
    )


def _query(body: JsonObject) -> Part:
    given = body.get("query")
    if given is None:
        raise missing("query")
    query = _document(given, "query")
    if not query.value:
        raise BadRequest("Invalid 'query': empty string.", param="query", code="empty_string")
    return query


def _documents(body: JsonObject) -> list[Any]:
    given = body.get("documents")
    if given is None:
        raise missing("documents")
    if not isinstance(given, list) or not given:
        raise wrong_type("documents", "a non-empty array of strings or objects", given)
    if len(given) > MAX_DOCUMENTS:
        raise _too_many(f"at most {MAX_DOCUMENTS} documents are allowed, {len(given)} were sent")
    return given


def _document(given: Any, path: str) -> Part:
    parts = text_or_object(given, path)
    if len(parts) > 1:
        raise BadRequest(
            f"Invalid '{path}': one text, one picture or one video is expected, not several.",
            param=path,
            code="invalid_value",
        )
    return parts[0]


def _too_many(why: str) -> BadRequest:
    return BadRequest(
        f"Invalid 'documents': {why}. Rank them in several requests, or fewer of them.",
        param="documents",
        code="array_above_max_length",
    )


# --- the upstream's ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What a model takes: how many documents of each kind, by which route, and whether it reads an
    instruction."""

    path: str
    most: Mapping[str, int]
    instruct: bool = True


_MEDIA: Final = _Kind(NATIVE_PATH, {TEXT: 100, IMAGE: 40, VIDEO: 4})
_TEXT: Final = _Kind(COMPATIBLE_PATH, {TEXT: MAX_DOCUMENTS})
_GTE: Final = _Kind(NATIVE_PATH, {TEXT: MAX_DOCUMENTS}, instruct=False)


def _kind_of(model: str) -> _Kind:
    name = model.rsplit("/", 1)[-1].lower()
    if re.search(r"-vl-", name):
        return _MEDIA
    return _GTE if name.startswith("gte-") else _TEXT


def call_for(request: RerankRequest, *, model: str, strict: bool = False) -> Call:
    """The call for a request.

    Args:
        model: the upstream's name for it.
        strict: refuse to lose anything of the request.

    Raises:
        BadRequest: the model does not rank such documents, or so many; or, if strict, something
            would be lost.
    """
    kind = _kind_of(model)
    _check(request, model, kind)
    changes = Changes(strict=strict)
    options: dict[str, Any] = {"top_n": request.top_n}
    if request.instruct is not None:
        if kind.instruct:
            options["instruct"] = request.instruct
            changes.note(request.instruct_name, "as-instruct")
        else:
            changes.lose(request.instruct_name, f"is not read by {model}")
    if kind is _MEDIA and (fps := number(request.body, "fps")) is not None:
        options["fps"] = fps
    _drop_the_rest(request.body, changes, read=_READ.union(options))
    return Call(kind.path, compact(_body(request, model, kind, options)).encode(), changes.entries)


def _body(
    request: RerankRequest, model: str, kind: _Kind, options: dict[str, Any]
) -> dict[str, Any]:
    query: Any = request.query.value
    documents: list[Any] = [document.value for document in request.documents]
    if kind is _MEDIA:
        query = request.query.native
        documents = [document.native for document in request.documents]
    asked = {"query": query, "documents": documents}
    if kind.path == COMPATIBLE_PATH:
        return {"model": model, **asked, **options}
    return {"model": model, "input": asked, "parameters": options}


def _check(request: RerankRequest, model: str, kind: _Kind) -> None:
    query = request.query.kind
    if query not in kind.most or query == VIDEO:
        some = "" if query == VIDEO else f"; {_SOME_MODEL}"
        raise BadRequest(
            f"Invalid 'query': the model `{model}` takes no {query} as a query{some}.",
            param="query",
            code="unsupported_content",
        )
    found = Counter(document.kind for document in request.documents)
    for name, documents in found.items():
        most = kind.most.get(name)
        if most is None:
            raise BadRequest(
                f"Invalid 'documents': the model `{model}` ranks texts only; {_SOME_MODEL}.",
                param="documents",
                code="unsupported_content",
            )
        if documents > most:
            raise _too_many(f"`{model}` ranks at most {most} {name}s, {documents} were sent")


def _drop_the_rest(body: JsonObject, changes: Changes, *, read: frozenset[str]) -> None:
    for name in body.names():
        if name in read or body[name] is None:
            continue
        if name in _HINTS:
            changes.note(name, "dropped")
        else:
            changes.lose(header_token(name), "has no counterpart in Model Studio's ranking")


# --- the answer ----------------------------------------------------------------------------------


def answer(
    request: RerankRequest,
    told: Mapping[str, Any],
    *,
    model: str,
    fallback_id: str,
    with_texts: bool,
) -> dict[str, Any]:
    """The answer in Cohere's and Jina's form.

    Args:
        told: the upstream's answer, of either route.
        model: as the client named it.
        fallback_id: the id where the upstream tells none.
        with_texts: documents that are texts come back where the client does not say.

    Shape: `{"id", "object": "list", "model", "results": [{"index", "relevance_score",
    "document"?: {"text"}}], "usage": {"prompt_tokens", "total_tokens"}, "meta": {"tokens":
    {"input_tokens"}}}`, the best document first.

    Raises:
        UpstreamError: the upstream left documents out, ranked one twice, or gave no number.
    """
    ranked = _ranked(_results(told), len(request.documents), request.top_n)
    tokens = integer(mapping(told.get("usage")).get("total_tokens")) or 0
    return {
        "id": text(told.get("id")) or text(told.get("request_id")) or fallback_id,
        "object": "list",
        "model": model,
        "results": [
            {"index": index, "relevance_score": score, **_returned(request, index, with_texts)}
            for index, score in ranked
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"tokens": {"input_tokens": tokens, "output_tokens": 0}},
    }


def _results(told: Mapping[str, Any]) -> list[Any]:
    """Of the compatible route, or of the native one."""
    return items(told.get("results")) or items(mapping(told.get("output")).get("results"))


def _ranked(results: list[Any], documents: int, wanted: int) -> list[tuple[int, float]]:
    """Index and score of the best documents, the best first; equal ones in their order.

    Raises:
        UpstreamError: see `answer`.
    """
    scores: dict[int, float] = {}
    for result in results:
        index = integer(mapping(result).get("index"))
        score = mapping(result).get("relevance_score")
        if index is None or not 0 <= index < documents or index in scores:
            raise _bad_answer()
        if not _is_number(score):
            raise _bad_answer()
        scores[index] = score
    if len(scores) < wanted:
        raise _bad_answer()
    return sorted(scores.items(), key=lambda each: (-each[1], each[0]))[:wanted]


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number that JSON can carry: Python's parser also reads NaN and Infinity."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


def _returned(request: RerankRequest, index: int, with_texts: bool) -> dict[str, Any]:
    """The document of a result, where it is to be returned."""
    wanted = request.return_documents
    if wanted is None:
        wanted = with_texts and request.documents[index].kind == TEXT
    if not wanted:
        return {}
    given = request.given[index]
    return {"document": {"text": given} if isinstance(given, str) else given}


def _bad_answer() -> UpstreamError:
    return UpstreamError(
        "The upstream's ranking does not match the documents that were sent.",
        code="upstream_bad_answer",
    )
