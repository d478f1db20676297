"""Videos as Model Studio's native API makes them: limits, refusals and answers. Pure.

A video is a box of MP4 with the name of its format, and a text: small, and no player shows it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.sandbox.errors import Refusal

Json = dict[str, Any]

_MEDIA: Final = ("first_frame", "last_frame", "driving_audio", "first_clip") + (
    *("reference_image", "reference_video", "reference_audio", "file", "link"),
)
_RATIOS: Final = ("16:9", "9:16", "1:1", "4:3", "3:4")
_COMMON: Final = frozenset({"duration", "seed", "prompt_extend", "watermark"})
_SHAPED: Final = _COMMON | {"resolution", "ratio"}
_TEXT: Final = frozenset({"prompt", "negative_prompt", "audio_url"})
_FRAMED: Final = frozenset({"prompt", "negative_prompt", "media"})
_SIZES: Final = frozenset(
    {"832*480", "480*832", "624*624", "1280*720", "720*1280", "960*960", "1104*832", "832*1104"}
    | {"1920*1080", "1080*1920", "1440*1440", "1648*1248", "1248*1648"}
)


@dataclass(frozen=True, slots=True)
class _Model:
    pattern: re.Pattern[str]
    inputs: frozenset[str]
    parameters: frozenset[str]
    seconds: tuple[int, ...]
    needs: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ("720P", "1080P")
    ratios: tuple[str, ...] = _RATIOS
    is_old: bool = False


def _model(pattern: str, *values: Any, **more: Any) -> _Model:
    return _Model(re.compile(pattern), *values, **more)


_MODELS: Final = (
    _model(
        r"wan3",
        frozenset({"prompt", "media"}),
        _SHAPED | {"audio"},
        (-1, *range(2, 31)),
        tiers=("480P", "720P", "1080P"),
        ratios=(*_RATIOS, "adaptive"),
    ),
    _model(
        r"happyhorse-1\.1-t2v",
        _TEXT,
        _SHAPED,
        (*range(2, 16),),
        ("prompt",),
        tiers=("480P", "720P", "1080P"),
    ),
    _model(r"(?:wan2\.7|happyhorse.*)-t2v", _TEXT, _SHAPED, (*range(2, 16),), ("prompt",)),
    _model(
        r"(?:wan2\.7|happyhorse.*)-i2v",
        _FRAMED,
        _COMMON | {"resolution"},
        (*range(2, 16),),
        ("media",),
    ),
    _model(r"(?:wan2\.7|happyhorse.*)-r2v", _FRAMED, _SHAPED, (*range(2, 16),), ("media",)),
    _model(r"wan2\.6-t2v", _TEXT, _COMMON | {"size", "shot_type"}, (*range(2, 16),), ("prompt",)),
    _model(r"wan2\.5-t2v", _TEXT, _COMMON | {"size"}, (5, 10), ("prompt",)),
    _model(
        r"wan2\.[56]-i2v",
        _TEXT | {"img_url"},
        _COMMON | {"resolution", "shot_type"},
        (*range(2, 16),),
        ("img_url",),
        tiers=("480P", "720P", "1080P"),
    ),
    _model(
        r"wan.*-kf2v",
        frozenset({"prompt", "negative_prompt", "first_frame_url", "last_frame_url"}),
        _COMMON | {"resolution"},
        (5,),
        ("first_frame_url",),
        tiers=("480P", "720P", "1080P"),
        is_old=True,
    ),
)


def generate(body: Json, path: str, keep: Callable[[str], str]) -> Json | Refusal:
    """The output of a task: `{"output": {…}, "usage": {…}}`, or a refusal.

    Args:
        keep: keeps a video that is made from a text; its URL.
    """
    model = str(body.get("model"))
    row = next((each for each in _MODELS if each.pattern.match(model)), None)
    if row is None or row.is_old != ("/image2video/" in path):
        return Refusal(404, "ModelNotFound", f"Model not exist: {model}", form="native")
    given, parameters = body.get("input"), body.get("parameters") or {}
    if not isinstance(given, dict) or not isinstance(parameters, dict):
        return _invalid("Field required: input")
    complaint = _input_complaint(row, given) or _parameter_complaint(row, parameters)
    if complaint:
        return _invalid(complaint)
    prompt = str(given.get("prompt", ""))
    seconds = parameters.get("duration", 5)
    return {
        "output": {"video_url": keep(prompt), "orig_prompt": prompt},
        "usage": {
            "duration": 8 if seconds == -1 else seconds,
            "output_video_duration": 8 if seconds == -1 else seconds,
            "input_video_duration": 0,
            "SR": int(str(parameters.get("resolution", "1080P")).rstrip("P")),
            "ratio": parameters.get("ratio", "16:9").replace("adaptive", "1:1"),
            "video_count": 1,
        },
    }


def _input_complaint(row: _Model, given: Json) -> str | None:
    for name in given:
        if name not in row.inputs:
            return f"input.{name} is not supported by this model"
    for name in row.needs:
        if not given.get(name):
            return f"Field required: input.{name}"
    media = given.get("media", [])
    if not isinstance(media, list) or not all(isinstance(each, dict) for each in media):
        return "input.media must be a list"
    kinds = [each.get("type") for each in media]
    if not all(kind in _MEDIA for kind in kinds):
        return f"input.media.type must be one of {', '.join(_MEDIA)}"
    if any("frame" in kind for kind in kinds) and any("reference" in kind for kind in kinds):
        return "frames and references cannot be used together"
    urls = [each.get("url") for each in media] + [
        given[name] for name in ("img_url", "first_frame_url") if name in given
    ]
    if not all(_is_url(url) for url in urls):
        return "The media url is invalid."
    return None


def _is_url(given: object) -> bool:
    return isinstance(given, str) and given.startswith(
        ("https://", "http://", "oss://", "data:image/")
    )


def _parameter_complaint(row: _Model, parameters: Json) -> str | None:
    for name in parameters:
        if name not in row.parameters:
            return f"parameters.{name} is not supported by this model"
    seconds = parameters.get("duration", 5)
    if type(seconds) is not int or seconds not in row.seconds:
        return f"duration must be one of {', '.join(map(str, row.seconds))}"
    if parameters.get("resolution", row.tiers[0]) not in row.tiers:
        return f"resolution must be one of {', '.join(row.tiers)}"
    if parameters.get("ratio", row.ratios[0]) not in row.ratios:
        return f"ratio must be one of {', '.join(row.ratios)}"
    if "size" in parameters and parameters["size"] not in _SIZES:
        return "size must be one of " + ", ".join(sorted(_SIZES))
    return None


def _invalid(message: str) -> Refusal:
    return Refusal(400, "InvalidParameter", message, form="native")


def mp4(text: str) -> bytes:
    """The first box of an MP4 file (ISO/IEC 14496-12 §4.3), and one of free space with a text."""
    named = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 512, b"mp41")
    free = text.encode("utf-8", "replace")
    return named + struct.pack(">I4s", 8 + len(free), b"free") + free
