"""Calls of models that embed texts, pictures and videos, by Model Studio's native API.

Limits, forms and the kinds of `usage` are from the vendor's multimodal embedding API, May 2026.
"""

from __future__ import annotations

import enum
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.content_parts import IMAGE, TEXT, VIDEO
from qwen_wsgi.protocol.embeddings.request import EmbeddingRequest, Row
from qwen_wsgi.protocol.json_access import integer, mapping
from qwen_wsgi.protocol.json_object import compact

#: Behind the host's name.
PATH: Final = "/api/v1/services/embeddings/multimodal-embedding/multimodal-embedding"

#: Upstream requests that one request may need: as many as one of texts needs at most.
MOST_CALLS: Final = 205


class Fusion(enum.Enum):
    """How a model makes one vector of several parts."""

    NEVER = enum.auto()
    #: By `enable_fusion`, for all parts of a call.
    SWITCHED = enum.auto()
    #: The members of one object of the call.
    IN_OBJECT = enum.auto()
    #: All parts of a call, always.
    ALWAYS = enum.auto()


@dataclass(frozen=True)
class Limits:
    """What a model takes in one call.

    Attributes:
        most: how many parts of each kind.
        parts: how many in all; of an object, its members count as one.
        numbers: the length of its vectors where it is fixed, else None.
    """

    fusion: Fusion
    parts: int
    most: Mapping[str, int]
    numbers: int | None = None


def _limits(
    fusion: Fusion, parts: int, images: int, videos: int, numbers: int | None = None
) -> Limits:
    return Limits(fusion, parts, {TEXT: parts, IMAGE: images, VIDEO: videos}, numbers)


#: The first pattern that matches a name counts. Of pictures for qwen3-vl-embedding, the vendor's
#: pages name 5 and 10; for the models without a snapshot they name no limit but the tokens.
_MODELS: Final = tuple(
    (re.compile(pattern), limits)
    for pattern, limits in (
        (r"^qwen2\.5-vl", _limits(Fusion.ALWAYS, 3, 1, 1)),
        (r"-vision-(?:plus|flash)-20\d\d", _limits(Fusion.IN_OBJECT, 20, 64, 8)),
        (r"-vision-plus", _limits(Fusion.NEVER, 20, 8, 8, 1152)),
        (r"-vision-flash", _limits(Fusion.NEVER, 20, 8, 8, 768)),
        (r"^multimodal-embedding", _limits(Fusion.NEVER, 20, 1, 1, 1024)),
        (r"-vl-", _limits(Fusion.SWITCHED, 20, 5, 1)),
    )
)

#: Members of a request that the native API has, too.
_OWN: Final = ("instruct", "fps", "res_level", "max_video_frames")
_READ: Final = frozenset(
    {*_OWN, "model", "input", "encoding_format", "dimensions", "enable_fusion"}
)


@functools.lru_cache(maxsize=256)
def limits_of(model: str) -> Limits | None:
    """What a model takes in one call; None for one that embeds texts only.

    A vendor's prefix (`Qwen/…`) and letter case do not matter.
    """
    name = model.rsplit("/", 1)[-1].lower()
    return next((limits for pattern, limits in _MODELS if pattern.search(name)), None)


def _limits_of(model: str) -> Limits:
    limits = limits_of(model)
    assert limits is not None, model
    return limits


def takes_media(model: str) -> bool:
    """Whether a model of Model Studio embeds pictures and videos, as its name shows."""
    return limits_of(model) is not None


def batches(request: EmbeddingRequest, model: str) -> list[tuple[Row, ...]]:
    """The rows of each call, in order. A row that is fused by a call is alone in it.

    Raises:
        BadRequest: a row is more than the model takes, or the rows need too many calls.
    """
    limits = _limits_of(model)
    found: list[tuple[Row, ...]] = []
    batch: list[Row] = []
    used: Counter[str] = Counter()
    for index, row in enumerate(request.rows):
        needed = Counter(part.kind for part in row)
        _check_row(needed, index, model, limits)
        if batch and (
            _is_alone(row, limits)
            or _is_alone(batch[-1], limits)
            or len(batch) >= limits.parts
            or _is_above(used + needed, limits)
        ):
            found.append(tuple(batch))
            batch, used = [], Counter()
        batch.append(row)
        used += needed
    found.append(tuple(batch))
    if len(found) > MOST_CALLS:
        raise BadRequest(
            f"Invalid 'input': these rows need {len(found)} requests of `{model}`, and at most "
            f"{MOST_CALLS} are made for one. Send fewer rows at a time.",
            param="input",
            code="array_above_max_length",
        )
    return found


def _is_alone(row: Row, limits: Limits) -> bool:
    return limits.fusion is Fusion.ALWAYS or (limits.fusion is Fusion.SWITCHED and len(row) > 1)


def _is_above(used: Mapping[str, int], limits: Limits) -> bool:
    return any(used[kind] > most for kind, most in limits.most.items())


def _check_row(needed: Counter[str], index: int, model: str, limits: Limits) -> None:
    """Refuse a row that the model cannot make one vector of."""
    if needed.total() == 1:
        return
    one_each = limits.fusion in (Fusion.ALWAYS, Fusion.IN_OBJECT)
    if limits.fusion is Fusion.NEVER:
        why = "makes one vector of one text, picture or video"
    elif one_each and max(needed.values()) > 1:
        why = "takes one text, one picture and one video in a row"
    elif needed.total() > limits.parts or _is_above(needed, limits):
        why = (
            f"takes {limits.parts} parts in a row, {limits.most[IMAGE]} pictures and "
            f"{limits.most[VIDEO]} video among them"
        )
    else:
        return
    more = "" if limits.fusion is Fusion.SWITCHED else "; `qwen3-vl-embedding` takes more"
    raise BadRequest(
        f"Invalid 'input[{index}]': the model `{model}` {why}{more}. A list in 'input' is one "
        "row, which gets one vector.",
        param="input",
        code="unsupported_content",
    )


def parameters(request: EmbeddingRequest, model: str, changes: Changes) -> dict[str, Any]:
    """The `parameters` of each call.

    Raises:
        BadRequest: vectors of this model have another length; or, in strict mode, something of
            the request would be lost.
    """
    limits = _limits_of(model)
    found = {name: request.body[name] for name in _OWN if request.body.get(name) is not None}
    if request.dimensions is not None:
        if limits.numbers is None:
            found["dimension"] = request.dimensions
        elif request.dimensions != limits.numbers:
            raise BadRequest(
                f"Invalid 'dimensions': the vectors of `{model}` always have {limits.numbers} "
                "numbers.",
                param="dimensions",
                code="invalid_value",
            )
    for name in request.body.names():
        if name == "user":
            changes.note(name, "dropped")
        elif name not in _READ and request.body[name] is not None:
            changes.lose(name, "has no counterpart in Model Studio's multimodal embeddings")
    return found


def body(model: str, rows: Sequence[Row], parameters: Mapping[str, Any]) -> bytes:
    """The body of one call."""
    fusion = _limits_of(model).fusion
    if fusion is Fusion.IN_OBJECT:
        contents = [{part.kind: part.value for part in row} for row in rows]
    else:
        contents = [part.native for row in rows for part in row]
    if fusion is Fusion.SWITCHED and any(len(row) > 1 for row in rows):
        parameters = {**parameters, "enable_fusion": True}
    value = {"model": model, "input": {"contents": contents}, "parameters": parameters}
    return compact(value).encode()


def vectors(answer: Mapping[str, Any]) -> Any:
    """Where the vectors of an answer are."""
    return mapping(answer.get("output")).get("embeddings")


def usage(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and all tokens; 0 where they are not told.

    `input_tokens` has those of pictures in it where it has details; else `image_tokens` is beside
    it, and the total may be missing.
    """
    told = mapping(answer.get("usage"))
    prompt = integer(told.get("input_tokens")) or 0
    if "input_tokens_details" not in told:
        prompt += integer(told.get("image_tokens")) or 0
    return prompt, integer(told.get("total_tokens")) or prompt
