"""The calls that the rows of a request need: by which route, which rows in each, their bodies."""

from __future__ import annotations

from typing import NamedTuple

from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.embeddings import multimodal, text
from qwen_wsgi.protocol.embeddings.request import EmbeddingRequest, Row


class Calls(NamedTuple):
    """What is sent to a Model Studio host.

    Attributes:
        bodies: one for each of `batches`.
        native_path: behind the host's name; "" for the compatible route.
        changed: as `Changes.entries`.
    """

    bodies: list[bytes]
    native_path: str = ""
    changed: tuple[str, ...] = ()


def batches(request: EmbeddingRequest, model: str) -> list[tuple[Row, ...]]:
    """The rows of each call, in order.

    Raises:
        BadRequest: the model does not take a row, or they need too many calls.
    """
    if multimodal.takes_media(model):
        return multimodal.batches(request, model)
    return text.batches(request, model)


def calls_for(request: EmbeddingRequest, *, model: str, strict: bool = False) -> Calls:
    """The calls for all rows, in order.

    Args:
        model: the upstream's name for it.
        strict: refuse to lose anything of the request.

    Raises:
        BadRequest: as for `batches`; or, if strict, something would be lost.
    """
    found = batches(request, model)
    if not multimodal.takes_media(model):
        return Calls([text.body(request, model, rows) for rows in found])
    changes = Changes(strict=strict)
    parameters = multimodal.parameters(request, model, changes)
    bodies = [multimodal.body(model, rows, parameters) for rows in found]
    return Calls(bodies, multimodal.PATH, changes.entries)
