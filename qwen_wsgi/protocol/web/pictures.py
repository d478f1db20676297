"""Pictures that a request holds itself (`data:…`), and how a message names them when they are
uploaded. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol.media import kind_of
from qwen_wsgi.protocol.web.oss import Place

#: Of one picture, and of all pictures of a request.
MOST_BYTES: Final = 20 * 1024 * 1024
MOST_PICTURES: Final = 16

_HEAD: Final = re.compile(r"data:[^,;]{0,100}(?:;[^,;]{0,100}){0,4};base64,", re.I)
_ENDS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/webp": "webp",
}


@dataclass(frozen=True)
class Picture:
    """The bytes of a picture. Its type is what its first bytes say: clients tell it wrongly."""

    content_type: str
    data: bytes

    def __repr__(self) -> str:
        return f"Picture({self.content_type}, {len(self.data)} bytes)"

    @cached_property
    def digest(self) -> str:
        """Names the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def name(self) -> str:
        """A file name that tells the web API nothing of the client."""
        return f"{self.digest[:16]}.{_ENDS[self.content_type]}"

    @property
    def wanted_place(self) -> dict[str, Any]:
        """The body that asks for a place for it."""
        return {"filename": self.name, "filesize": len(self.data), "filetype": "image"}


def is_address(url: str) -> bool:
    """Whether a picture is at an address, where the web API fetches it itself."""
    return url[:8].lower().startswith(("https://", "http://"))


def picture_of(url: str, param: str) -> Picture:
    """The picture of a data URL.

    Raises:
        ApiError: 400: it is none, or is broken; 413: it is too large.
    """
    head = _HEAD.match(url)
    if head is None:
        raise _wrong(param, "expected the address of a picture (https://…) or `data:…;base64,…`")
    if len(url) - head.end() > MOST_BYTES * 4 // 3 + 4:
        raise ApiError(
            f"Invalid '{param}': a picture for the web account may have "
            f"{MOST_BYTES // (1024 * 1024)} MB.",
            status=413,
            type="invalid_request_error",
            code="image_too_large",
            param=param,
            should_retry=False,
        )
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(param, "the base64 of a picture is broken") from None
    kind = kind_of(data)
    if kind not in _ENDS:
        raise _wrong(param, "PNG, JPEG, WebP, BMP, TIFF and GIF are read, and this is none of them")
    return Picture(kind, data)


def too_many(param: str) -> BadRequest:
    """The refusal of a request with more pictures than are uploaded."""
    return BadRequest(
        f"Invalid '{param}': at most {MOST_PICTURES} pictures are uploaded for a request.",
        param=param,
        code="too_many_images",
    )


def linked(url: str) -> dict[str, Any]:
    """The entry of a message's `files` for a picture at an address."""
    return {"type": "image", "url": url}


def entry_of(
    picture: Picture, place: Place, now: float, new_id: Callable[[], str]
) -> dict[str, Any]:
    """The entry of a message's `files` for a picture that is at its place."""
    size, milliseconds = len(picture.data), int(now * 1000)
    meta = {"name": picture.name, "size": size, "content_type": picture.content_type}
    file = {
        "id": place.file_id,
        "filename": picture.name,
        "created_at": milliseconds,
        "update_at": milliseconds,
        "data": {},
        "meta": meta,
    }
    return {
        "type": "image",
        "file": file,
        "id": place.file_id,
        "url": place.file_url,
        "name": picture.name,
        "size": size,
        "status": "uploaded",
        "greenNet": "success",
        "file_type": picture.content_type,
        "showType": "image",
        "file_class": "vision",
        "itemId": new_id(),
        "uploadTaskId": new_id(),
        "collection_name": "",
        "progress": 0,
        "error": "",
    }


def _wrong(param: str, what: str) -> BadRequest:
    return BadRequest(f"Invalid '{param}': {what}.", param=param, code="invalid_image_format")
