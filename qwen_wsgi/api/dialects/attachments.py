"""Gives the text layers of attached PDFs to the translations, before they see the request."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.translation import documents

#: Looked for in the bytes of a body: nearly none has a PDF, and those that do are searched.
MARK: Final = documents.PDF.encode()
#: So many PDFs of a request are read.
_MOST: Final = 20

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def texts_of(call: LiveCall, body: JsonObject, member: str) -> Mapping[str, str]:
    """The texts of the PDFs in a member of the request, by their base64; mostly there are none."""
    if not body.may_hold(MARK):
        return _NONE
    found = dict.fromkeys(documents.pdfs_in(body.get(member)))
    if not found:
        return _NONE
    return call.services.pdf_reader.texts_of(itertools.islice(found, _MOST))


def with_texts(call: LiveCall, body: JsonObject, member: str) -> tuple[JsonObject, tuple[str, ...]]:
    """The request with texts in the place of the PDFs that have one.

    Returns:
        The request, and what was changed, for the header.
    """
    texts = texts_of(call, body, member)
    if not texts:
        return body, ()
    changed = documents.with_texts(body.get(member), texts)
    return JsonObject(body.render({member: changed})), (f"{member}:pdf-as-text",)
