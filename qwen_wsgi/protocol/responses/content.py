"""Translates the content of items to chat, and packs thinking that a client keeps for the proxy."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.translation import documents
from qwen_wsgi.protocol.validation import wrong_type

#: Types of parts with a text. `text` is chat's own type, which clients confuse with these.
TEXTS: Final = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_PARTS: Final = ("input_text", "input_image", "input_audio", "output_text", "refusal")

#: OpenAI's levels of detail, except the default `auto`, and those of chat.
DETAILS: Final = {"low": "low", "high": "high", "original": "high"}


def parts_of(
    holder: dict[str, Any], name: str, path: str, changes: Changes
) -> str | list[dict[str, Any]]:
    """Translate a member that is a string or an array of parts; a single text becomes a string.

    Raises:
        BadRequest: it is missing, of another type, or has a part that Qwen's models do not take.
    """
    value = holder.get(name)
    if value is None:
        raise validation.missing(path + name)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(path + name, "a string or an array of objects", value)
    given = validation.objects(holder, name, path)
    parts = [_part(part, f"{path}{name}[{index}].", changes) for index, part in enumerate(given)]
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def text_of(parts: str | list[dict[str, Any]], between: str) -> str:
    """Join the texts among parts of chat."""
    if isinstance(parts, str):
        return parts
    return between.join(part["text"] for part in parts if part["type"] == "text")


def media_of(parts: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of chat that are not texts."""
    return [] if isinstance(parts, str) else [part for part in parts if part["type"] != "text"]


def _part(part: dict[str, Any], path: str, changes: Changes) -> dict[str, Any]:
    kind = validation.required_text(part, "type", path)
    if kind in TEXTS:
        return {"type": "text", "text": validation.required_text(part, "text", path)}
    if kind == "refusal":
        # Qwen's hosts do not know chat's part for refusals, so it is sent as text.
        return {"type": "text", "text": validation.required_text(part, "refusal", path)}
    if kind == "input_image":
        return _image(part, path)
    if kind == "input_audio":
        audio = validation.mapping(part, "input_audio", path)
        if audio is None:
            raise validation.missing(path + "input_audio")
        return {"type": "input_audio", "input_audio": audio}
    if kind == "input_file":
        return {"type": "text", "text": _file(part, path, changes)}
    raise validation.bad_value(path + "type", kind, _PARTS)


def _file(part: dict[str, Any], path: str, changes: Changes) -> str:
    """The text of a file; if it has none, a sentence that says so."""
    name = validation.text(part, "filename", path) or ""
    data = validation.text(part, "file_data", path) or ""
    text = documents.text_of_url(data)
    if text is not None:
        return f"{name}\n\n{text}" if name else text
    changes.lose("input", "has a file that cannot be read", what="file-left-out")
    media = data.partition(",")[0].removeprefix("data:") if data.startswith("data:") else "a file"
    return documents.placeholder(name, media.partition(";")[0])


def _image(part: dict[str, Any], path: str) -> dict[str, Any]:
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")  # chat's form, which clients confuse with this one
    if not isinstance(url, str | None):
        raise wrong_type(path + "image_url", "a string", url)
    if not url:
        if part.get("file_id"):
            raise BadRequest(
                "Images by 'file_id' are not supported. Send a URL or a data URL as 'image_url'.",
                param=path + "file_id",
                code="unsupported_value",
            )
        raise validation.missing(path + "image_url")
    detail = validation.text(part, "detail", path)
    image = {"url": url}
    if detail in DETAILS:
        image["detail"] = DETAILS[detail]
    return {"type": "image_url", "image_url": image}


# --- packed thinking ----------------------------------------------------------------------------

#: Marks `encrypted_content` of this proxy: packed, not encrypted. A client that stores nothing here
#: (`store: false`: Codex, the AI SDK) requests it by `include: ["reasoning.encrypted_content"]` and
#: sends it back with the next turn; some drop thinking that has none. Other servers' content cannot
#: be read and is ignored, because the conversation may have begun there.
_PREFIX: Final = "qwen-proxy-unencrypted-1:"


def pack_thinking(thinking: str) -> str:
    """Pack thinking for the client: the prefix, and base64 of `{"thinking": "…"}`."""
    return pack({"thinking": thinking})


def unpack_thinking(content: Any) -> str | None:
    """Unpack the thinking that a client sends back; None if it is not from this proxy."""
    return unpack(content, "thinking")


def pack(value: dict[str, str]) -> str:
    """Pack a text for the client, which sends it back."""
    return _PREFIX + base64.b64encode(compact(value).encode()).decode()


def unpack(content: Any, name: str) -> str | None:
    """The text of this name that `pack` packed; None if the content is not from this proxy."""
    if not isinstance(content, str) or not content.startswith(_PREFIX):
        return None
    try:
        value = json.loads(base64.b64decode(content[len(_PREFIX) :], validate=True))
    except (ValueError, RecursionError):
        return None
    text = value.get(name) if isinstance(value, dict) else None
    return text if isinstance(text, str) else None
