"""Pictures as Model Studio's native API makes them: limits, refusals and answers. Pure.

A picture is one colour, which follows from the prompt: it is small, valid, and of the size wanted.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec

Json = dict[str, Any]
#: Keeps a picture of a width and height, made from a text; its URL.
Keep = Callable[[str, int, int], str]

_LISTED_SIZES: Final = ("1664*928", "1472*1104", "1328*1328", "1104*1472", "928*1664")


@dataclass(frozen=True, slots=True)
class _Model:
    pattern: re.Pattern[str]
    most: int  # pictures of a call
    inputs: tuple[int, int]  # pictures of a request, least and most
    default: str
    sizes: tuple[str, ...] = ()
    side: tuple[int, int] = (0, 0)
    pixels: tuple[int, int] = (0, 0)
    lacks: tuple[str, ...] = ()


def _model(pattern: str, most: int, inputs: tuple[int, int], default: str, **more: Any) -> _Model:
    return _Model(re.compile(pattern), most, inputs, default, **more)


_MODELS: Final = (
    _model(r"qwen-image-edit$", 1, (1, 3), "1024*1024", lacks=("size", "prompt_extend")),
    _model(r"qwen-image-edit-", 6, (1, 3), "1024*1024", side=(512, 2048)),
    _model(r"qwen-image-2\.1", 6, (0, 10), "1024*1024", pixels=(512**2, 2048**2)),
    _model(r"qwen-image-3\.0", 6, (0, 3), "1024*1024", pixels=(512**2, 2048**2)),
    _model(r"qwen-image-2\.0", 6, (0, 3), "2048*2048", pixels=(512**2, 2048**2)),
    _model(r"qwen-image", 1, (0, 0), "1664*928", sizes=_LISTED_SIZES),
    _model(r"z-image", 1, (0, 0), "1024*1536", pixels=(512**2, 2048**2)),
    _model(
        r"wan2\.7-image",
        4,
        (0, 9),
        "2048*2048",
        sizes=("1K", "2K", "4K"),
        pixels=(768**2, 4096**2),
        lacks=("negative_prompt", "prompt_extend"),
    ),
    _model(r"wan2\.6-image", 4, (1, 4), "1280*1280", sizes=("1K", "2K"), pixels=(768**2, 2048**2)),
    _model(r"wan", 4, (0, 3), "1280*1280", pixels=(512**2, 1440**2)),
)
_PARAMETERS: Final = frozenset(
    {"size", "n", "negative_prompt", "prompt_extend", "prompt_extend_mode", "watermark", "seed"}
    | {"thinking_mode", "enable_sequential", "bbox_list", "color_palette", "enable_interleave"}
)


def has(model: str) -> bool:
    """Whether a model makes pictures here."""
    return any(each.pattern.match(model) for each in _MODELS)


def generate(body: Json, spec: Spec, keep: Keep, *, choices: bool = True) -> Json | Refusal:
    """The answer of the synchronous route, and the output of tasks.

    Args:
        choices: in `output.choices`; else in `output.results`, as older tasks have them.
    """
    model = str(body.get("model"))
    row = next((each for each in _MODELS if each.pattern.match(model)), None)
    if row is None:
        return _invalid(f"Model not exist: {model}", 404, "ModelNotFound")
    parameters = body.get("parameters") or {}
    read = _prompt(body.get("input"), old=not choices)
    if isinstance(read, str):
        return _invalid(read)
    prompt, pictures = read
    complaint = _complaint(row, parameters, pictures)
    if complaint:
        return _invalid(complaint)
    width, height = _size(str(parameters.get("size") or row.default))
    count = int(parameters.get("n") or 1)
    failed = spec.count("partial")
    urls = [keep(f"{prompt} {i}", width, height) for i in range(max(0, count - failed))]
    if choices:
        parts: list[Json] = [{"image": url, "type": "image"} for url in urls]
        messages = [parts] if "one-choice" in spec else [[part] for part in parts]
        output: Json = {
            "choices": [
                {"finish_reason": "stop", "message": {"role": "assistant", "content": each}}
                for each in messages
            ],
            "finished": True,
        }
        usage = {"image_count": len(urls), "width": width, "height": height}
    else:
        lost = {"code": "InternalError.Timeout", "message": "[sandbox] this picture failed"}
        output = {
            "results": [
                {"url": url, "orig_prompt": prompt, "actual_prompt": f"{prompt}, in detail"}
                for url in urls
            ]
            + [lost] * min(failed, count),
            "task_metrics": {"TOTAL": count, "SUCCEEDED": len(urls), "FAILED": count - len(urls)},
        }
        usage = {"image_count": len(urls)}
    return {"output": output, "usage": usage}


def _prompt(given: object, *, old: bool) -> tuple[str, int] | str:
    """The prompt and the number of pictures, or a complaint."""
    if not isinstance(given, dict):
        return "Field required: input"
    if old:
        prompt = given.get("prompt")
        pictures = given.get("images") or given.get("ref_img") or []
        if not isinstance(prompt, str) or not prompt:
            return "Field required: input.prompt"
        return prompt, len(pictures) if isinstance(pictures, list) else 1
    messages = given.get("messages")
    if not isinstance(messages, list) or len(messages) != 1:
        return "messages length only support 1"
    content = messages[0].get("content") if isinstance(messages[0], dict) else None
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and "text" in part]
    pictures = [part["image"] for part in parts if isinstance(part, dict) and "image" in part]
    if len(texts) != 1 or not isinstance(texts[0], str):
        return "content must contain exactly one text"
    if parts and "text" not in parts[-1]:
        return "the text must come after the images"
    if not all(_is_picture(each) for each in pictures):
        return "The image url is invalid."
    return texts[0], len(pictures)


def _is_picture(given: object) -> bool:
    return isinstance(given, str) and given.startswith(
        ("https://", "http://", "oss://", "data:image/")
    )


def _complaint(row: _Model, parameters: Json, pictures: int) -> str | None:
    for name in parameters:
        if name not in _PARAMETERS or name in row.lacks:
            return f"parameters.{name} is not supported by this model"
    least, most = row.inputs
    if not least <= pictures <= most:
        return f"the number of images must be between {least} and {most}"
    count = parameters.get("n", 1)
    if not isinstance(count, int) or not 1 <= count <= row.most:
        return (
            "num_images_per_prompt must be 1"
            if row.most == 1
            else f"n must be between 1 and {row.most}"
        )
    if "size" not in parameters:
        return None
    size = parameters["size"]
    if row.sizes and size in row.sizes:
        return None
    match = re.fullmatch(r"(\d{1,5})\*(\d{1,5})", str(size))
    if match is None or (row.sizes and not row.pixels[1]):
        return f"size must be one of {', '.join(row.sizes) or 'W*H'}"
    width, height = int(match[1]), int(match[2])
    if row.side[1] and not all(row.side[0] <= each <= row.side[1] for each in (width, height)):
        return f"width and height must be between {row.side[0]} and {row.side[1]}"
    if row.pixels[1] and not row.pixels[0] <= width * height <= row.pixels[1]:
        return f"the pixels must be between {row.pixels[0]} and {row.pixels[1]}"
    return None


def _size(text: str) -> tuple[int, int]:
    named = {"1K": (1024, 1024), "2K": (2048, 2048), "4K": (4096, 4096)}
    if text in named:
        return named[text]
    width, _, height = text.partition("*")
    return int(width), int(height)


def _invalid(message: str, status: int = 400, code: str = "InvalidParameter") -> Refusal:
    return Refusal(status, code, message, form="native")


def png(text: str, width: int, height: int) -> bytes:
    """A PNG of one colour."""
    colour = hashlib.sha256(text.encode("utf-8", "replace")).digest()[:1]
    # A palette of one entry: a row of pixels is zeros, of one bit each.
    row = b"\x00" * (1 + (width + 7) // 8)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)),
            _chunk(b"PLTE", colour * 3),
            _chunk(b"IDAT", zlib.compress(row * height, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
