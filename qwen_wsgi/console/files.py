"""The files that pages load: stylesheets, scripts, pictures. Read once, at first use."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

#: For Flask.
TEMPLATES: Final = Path(__file__).with_name("templates")

_ASSETS: Final = Path(__file__).with_name("assets")

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file that pages load.

    Attributes:
        tag: another one when the content is another one.
    """

    content: bytes
    content_type: str
    tag: str


@functools.cache
def assets() -> Mapping[str, Asset]:
    """All of them, by name."""
    found = {}
    for path in sorted(_ASSETS.iterdir()):
        if content_type := _TYPES.get(path.suffix):
            content = path.read_bytes()
            tag = hashlib.sha256(content).hexdigest()[:12]
            found[path.name] = Asset(content, content_type, tag)
    return found


def address_of(name: str) -> str:
    """The address of an asset: with its tag, so that browsers keep it for as long as it is true."""
    return f"/console/assets/{name}?v={assets()[name].tag}"
