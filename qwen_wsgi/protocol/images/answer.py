"""Reads Model Studio's answers with pictures, and renders OpenAI's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.json_object import encoded


class Made(NamedTuple):
    """One picture that was made."""

    url: str
    revised_prompt: str = ""


def pictures_of(answer: Mapping[str, Any]) -> list[Made]:
    """The pictures of a native answer or of a finished task, in order; failed ones are left out.

    Some models give one choice for each picture, some give several in one.
    """
    output = json_access.mapping(answer.get("output"))
    made = [
        Made(part["image"])
        for choice in json_access.objects(output.get("choices"))
        for part in json_access.objects(json_access.mapping(choice.get("message")).get("content"))
        if isinstance(part.get("image"), str)
    ]
    for result in json_access.objects(output.get("results")):
        if isinstance(url := result.get("url"), str):
            prompt = result.get("actual_prompt")
            made.append(Made(url, prompt if isinstance(prompt, str) else ""))
    return made


def failure_of(answers: Iterable[Mapping[str, Any]]) -> UpstreamError:
    """The error for answers without any picture."""
    for answer in answers:
        for result in json_access.objects(json_access.mapping(answer.get("output")).get("results")):
            if isinstance(message := result.get("message"), str) and message:
                return UpstreamError(
                    f"The upstream made no picture: {message[:500]}", code="upstream_no_picture"
                )
    return UpstreamError("The upstream answered without a picture.", code="upstream_no_picture")


def images_response(
    entries: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    *,
    created: int,
) -> dict[str, Any]:
    """OpenAI's answer: `{"created", "data": [{"url" | "b64_json", "revised_prompt"?}],
    "output_format": "png", "size"?, "usage"?}`.

    Args:
        entries: of `data`.
        answers: of the upstream, for size and usage.
    """
    usages = [json_access.mapping(answer.get("usage")) for answer in answers]
    response: dict[str, Any] = {
        "created": created,
        "data": list(entries),
        "output_format": "png",
    }
    if size := next(filter(None, map(_size, usages)), ""):
        response["size"] = size
    if usage := _usage(usages):
        response["usage"] = usage
    return response


#: An empty picture as it is rendered. No text can hold this, because it has its quotes escaped.
_EMPTY: Final = b'"b64_json":""'


def with_pictures(response: Mapping[str, Any], pictures: Sequence[bytes]) -> list[bytes]:
    """Render a response in pieces, without a copy of the pictures.

    Args:
        response: its entries have an empty `b64_json`.
        pictures: what belongs there, in base64.
    """
    first, *rest = encoded(response).split(_EMPTY)
    pieces = [first]
    for picture, more in zip(pictures, rest, strict=True):
        pieces += (_EMPTY[:-1], picture, b'"' + more)
    return pieces


def _size(usage: Mapping[str, Any]) -> str:
    for prefix in ("", "output_"):
        width, height = usage.get(prefix + "width"), usage.get(prefix + "height")
        if isinstance(width, int) and isinstance(height, int):
            return f"{width}x{height}"
    size = usage.get("size")
    return size.replace("*", "x") if isinstance(size, str) else ""


def _usage(usages: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """OpenAI's usage, where the upstream counts tokens; most models count pictures."""
    total = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    known = False
    for usage in usages:
        for name in total:
            if isinstance(count := usage.get(name), int) and not isinstance(count, bool):
                total[name] += count
                known = True
    if not known:
        return None
    return {
        **total,
        "input_tokens_details": {"text_tokens": total["input_tokens"], "image_tokens": 0},
    }
