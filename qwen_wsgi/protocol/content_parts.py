"""Reads what is embedded or ranked: texts, pictures and videos, as several APIs write them.

OpenAI's chat and Cohere: `{"type": "text", "text"}`, `{"type": "image_url", "image_url": {"url"}}`,
`{"type": "video_url", "video_url": {"url"}}`. Jina and Model Studio: `{"text"}`, `{"image"}`,
`{"video"}`, also several of them in one object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.validation import bad_value, required_text, wrong_type

TEXT: Final = "text"
IMAGE: Final = "image"
VIDEO: Final = "video"
_KINDS: Final = (TEXT, IMAGE, VIDEO)

#: What a typed part is; its value is in the member of the same name.
_TYPES: Final = {"text": TEXT, "image_url": IMAGE, "video_url": VIDEO}

#: How base64 of pictures begins. Jina takes it without the head of a data URL.
_BASE64: Final = {
    "/9j/": "jpeg",
    "iVBORw0KGgo": "png",
    "UklGR": "webp",
    "Qk": "bmp",
    "SUkq": "tiff",
    "TU0AK": "tiff",
}
_URLS: Final = ("http://", "https://")
_IMAGE_URLS: Final = (*_URLS, "data:image/")


class Part(NamedTuple):
    """One text, picture or video: `kind` is `TEXT`, `IMAGE` or `VIDEO`, `value` its text or URL."""

    kind: str
    value: str

    @property
    def native(self) -> dict[str, str]:
        """As Model Studio's native API has it: `{"image": "https://…"}`."""
        return {self.kind: self.value}


def parts_of(given: Mapping[str, Any], path: str) -> tuple[Part, ...]:
    """The parts of one object, in its order: one, or several of Model Studio's form.

    Args:
        path: of the object, for refusals: `input[3]`.

    Raises:
        BadRequest: it has no part, or one that no model takes.
    """
    kind = given.get("type")
    if isinstance(kind, str):
        if kind not in _TYPES:
            raise bad_value(f"{path}.type", kind, _TYPES)
        return (_part(_TYPES[kind], given, kind, path),)
    found = tuple(
        _part(name, given, name, path)
        for name in given
        if name in _KINDS and given[name] is not None
    )
    if not found:
        raise BadRequest(
            f"Invalid '{path}': expected an object with 'text', 'image' or 'video', or a content "
            "part with a 'type'.",
            param=path,
            code="invalid_value",
        )
    return found


def _part(kind: str, given: Mapping[str, Any], name: str, path: str) -> Part:
    value = given.get(name)
    if kind != TEXT and isinstance(value, dict):
        path, given, name = f"{path}.{name}", value, "url"
    value = required_text(given, name, path + ".")
    if kind == TEXT:
        return Part(kind, value)
    if kind == IMAGE and not value.startswith(_IMAGE_URLS):
        value = _data_url(value) or value
    if not value.startswith(_IMAGE_URLS if kind == IMAGE else _URLS):
        takes = "an http or https URL" + (", or a data URL" if kind == IMAGE else "")
        raise BadRequest(
            f"Invalid '{path}.{name}': a{'n' * (kind == IMAGE)} {kind} has to be {takes}.",
            param=f"{path}.{name}",
            code="invalid_value",
        )
    return Part(kind, value)


def _data_url(value: str) -> str | None:
    """The data URL of a picture in plain base64; None if it is none."""
    found = next((kind for head, kind in _BASE64.items() if value.startswith(head)), None)
    return f"data:image/{found};base64,{value}" if found else None


def text_or_object(value: Any, path: str) -> tuple[Part, ...]:
    """The parts of a string or an object.

    Raises:
        BadRequest: it is neither.
    """
    if isinstance(value, str):
        return (Part(TEXT, value),)
    if not isinstance(value, dict):
        raise wrong_type(path, "a string or an object", value)
    return parts_of(value, path)
