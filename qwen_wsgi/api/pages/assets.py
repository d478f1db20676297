"""GET /pages/{name}: the style and the script of the pages."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flask import Blueprint, Response

from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.pages import html
from qwen_wsgi.errors import NotFound

blueprint = Blueprint("page_assets", __name__)
blueprint.before_request(lifecycle.refuse_pages)

_FILES: Final = Path(__file__).with_name("files")
_TYPES: Final[Mapping[str, str]] = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}


@blueprint.get("/pages/<name>")
def asset(name: str) -> Response:
    """A file of the pages."""
    lifecycle.live().record.quiet = True
    if name not in _TYPES:
        raise NotFound(f"No page has a file '{name[:64]}'.", code="unknown_url")
    response = html.response(_read(name), kind=_TYPES[name])
    response.headers.add("cache-control", "max-age=300")
    return response


@functools.cache
def _read(name: str) -> bytes:
    return (_FILES / name).read_bytes()
