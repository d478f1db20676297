"""The content of items as content of chat messages."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.validation import wrong_type

#: Types of parts that hold a text. `text` is chat's own word, which clients mix up with these.
TEXTS: Final = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_PARTS: Final = ("input_text", "input_image", "input_audio", "output_text", "refusal")

#: OpenAI's levels of detail but the default, `auto`, and what they are in chat.
DETAILS: Final = {"low": "low", "high": "high", "original": "high"}


def parts_of(holder: dict[str, Any], name: str, path: str) -> str | list[dict[str, Any]]:
    """A member that is a string or an array of parts, as chat has it: a single text as string.

    Raises:
        BadRequest: it is missing, of another type, or has a part that Qwen's models cannot take.
    """
    value = holder.get(name)
    if value is None:
        raise validation.missing(path + name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(path + name, "a string or an array of objects", value)
    given = validation.objects(holder, name, path)
    parts = [_part(part, f"{path}{name}[{index}].") for index, part in enumerate(given)]
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def text_of(parts: str | list[dict[str, Any]], between: str) -> str:
    """The texts among some parts of chat as one."""
    if isinstance(parts, str):
        return parts
    return between.join(part["text"] for part in parts if part["type"] == "text")


def media_of(parts: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of chat that are no texts."""
    return [] if isinstance(parts, str) else [part for part in parts if part["type"] != "text"]


def _part(part: dict[str, Any], path: str) -> dict[str, Any]:
    kind = validation.required_text(part, "type", path)
    if kind in TEXTS:
        return {"type": "text", "text": validation.required_text(part, "text", path)}
    if kind == "refusal":
        # Chat's own part for it is unknown to Qwen's hosts; to the model it is what was said.
        return {"type": "text", "text": validation.required_text(part, "refusal", path)}
    if kind == "input_image":
        return _image(part, path)
    if kind == "input_audio":
        audio = validation.mapping(part, "input_audio", path)
        if audio is None:
            raise validation.missing(path + "input_audio")
        return {"type": "input_audio", "input_audio": audio}
    if kind == "input_file":
        raise BadRequest(
            "Files cannot be given to Qwen's models here ('input_file'). Send their text as "
            "'input_text', or pages as 'input_image'.",
            param=path + "type",
            code="unsupported_value",
        )
    raise validation.bad_value(path + "type", kind, _PARTS)


def _image(part: dict[str, Any], path: str) -> dict[str, Any]:
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")  # chat's form, which clients mix up with this one
    if not isinstance(url, str | None):
        raise wrong_type(path + "image_url", "a string", url)
    if not url:
        if part.get("file_id"):
            raise BadRequest(
                "Images cannot be given by 'file_id' here. Send a URL or a data URL as "
                "'image_url'.",
                param=path + "file_id",
                code="unsupported_value",
            )
        raise validation.missing(path + "image_url")
    detail = validation.text(part, "detail", path)
    image = {"url": url}
    if detail in DETAILS:
        image["detail"] = DETAILS[detail]
    return {"type": "image_url", "image_url": image}
