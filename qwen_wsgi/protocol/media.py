"""What requests of media endpoints share: values of forms, sizes, and pictures as URLs. Pure."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.json_object import loads
from qwen_wsgi.protocol.validation import unsupported, wrong_type

_LARGEST_SIDE: Final = 100_000


class Size(NamedTuple):
    """Width and height of a picture or a video, in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def ratio(self) -> float:
        return self.width / self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def size_of(given: object) -> Size | None:
    """Read `1024x768`, or `1024*768` as hosts write it; None if it is something else."""
    match = re.fullmatch(r"(\d{1,6})[x*](\d{1,6})", given) if isinstance(given, str) else None
    if match is None:
        return None
    size = Size(int(match[1]), int(match[2]))
    return size if all(0 < side <= _LARGEST_SIDE for side in size) else None


def shape_distance(one: Size, other: Size) -> float:
    """How far two shapes are apart, in the ratio's logarithm: 2:1 is as far from 1:1 as 1:2."""
    return abs(math.log(one.ratio / other.ratio))


def nearest_size(wanted: Size, sizes: Iterable[Size]) -> Size:
    """The nearest of some sizes: by shape, then by area."""
    return min(
        sizes,
        key=lambda size: (
            round(shape_distance(size, wanted), 3),
            abs(size.pixels - wanted.pixels),
        ),
    )


class File(NamedTuple):
    """A file of a multipart request."""

    content_type: str
    data: bytes


def picture_url(given: object, name: str) -> str:
    """A picture that a member of JSON names: a text, or OpenAI's `{"image_url"}`.

    Raises:
        BadRequest: it is neither, or a file id.
    """
    if isinstance(given, dict):
        if given.get("file_id") is not None:
            raise unsupported(name, "Pictures by 'file_id' are not supported: send them along.")
        given = given.get("image_url", given.get("url"))
        if isinstance(given, dict):
            given = given.get("url")
    if not isinstance(given, str):
        raise wrong_type(name, "a URL or a data URL of a picture", given)
    if not given.startswith(("https://", "http://", "data:image/", "oss://")):
        raise BadRequest(
            f"Invalid '{name}': expected a URL (https) or a data URL of a picture.",
            param=name,
            code="invalid_value",
        )
    return given


def data_url_of(file: File, param: str) -> str:
    """A picture of a form as a data URL.

    Raises:
        BadRequest: it is no picture.
    """
    kind = kind_of(file.data) or file.content_type.partition(";")[0].strip().lower()
    if not re.fullmatch(r"image/[a-z0-9.+-]+", kind):
        raise BadRequest(
            f"Invalid '{param}': the file is no picture. PNG, JPEG, WebP, BMP, TIFF and GIF are "
            "read.",
            param=param,
            code="invalid_image_format",
        )
    return f"data:{kind};base64,{base64.b64encode(file.data).decode('ascii')}"


def kind_of(data: bytes) -> str:
    """The type of a picture by its first bytes, which clients tell wrongly or not at all."""
    for begin, kind in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF8", "image/gif"),
        (b"BM", "image/bmp"),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
    ):
        if data.startswith(begin):
            return kind
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def parsed(value: Any) -> Any:
    """A value of a form, which is a text, as JSON has it; prompts are not read this way."""
    if not isinstance(value, str) or len(value) > 100_000:
        return value
    if value and (value[0] in '[{-"0123456789' or value in ("true", "false", "null")):
        try:
            return loads(value.encode(errors="surrogatepass"))
        except (ValueError, RecursionError):
            return value
    return value
