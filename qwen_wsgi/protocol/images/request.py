"""Reads requests for pictures, JSON or multipart, and renders them for a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.images.models import OWN, ImageModel, Road, image_model
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.protocol.media import File, Size, data_url_of, parsed, picture_url, size_of
from qwen_wsgi.protocol.validation import (
    bad_value,
    missing,
    model_of,
    text,
    unsupported,
    wrong_type,
)

#: OpenAI's own limit for one request.
MOST_PICTURES: Final = 10
#: No model takes more, and each costs memory.
_MOST_INPUTS: Final = 16

#: OpenAI's members that no model of Qwen has, and what they are when they ask for nothing.
_LOST: Final[Mapping[str, tuple[Any, ...]]] = {
    "quality": ("auto",),
    "style": (),
    "background": ("auto", "opaque"),
    "output_compression": (100,),
    "moderation": ("auto",),
    "input_fidelity": (),
}
#: Members that change nothing of the picture.
_IGNORED: Final = frozenset({"user", "metadata", "extra_body"})


@dataclass(frozen=True)
class ImageRequest:
    """A checked request.

    Attributes:
        pictures: URLs of those that go in; data URLs, too.
        count: pictures that are wanted.
        size: in pixels, or a name such as `2K`, or None for the model's own choice.
        base64: pictures are sent in the answer; False for their URLs.
        own: Qwen's own parameters.
        lost: OpenAI's members that no model has, by name.
    """

    model: str
    prompt: str
    pictures: tuple[str, ...] = ()
    count: int = 1
    size: Size | str | None = None
    base64: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


def parse_request(
    members: Mapping[str, Any], files: Mapping[str, Sequence[File]] = {}, *, edit: bool = False
) -> ImageRequest:
    """Read a request for new pictures or for edited ones.

    Args:
        members: of the JSON, or the fields of a form, whose values are texts.
        files: of a form, by name; `image` and `image[]` are the same.
        edit: at least one picture must go in.

    Raises:
        BadRequest: a member is missing or of a wrong type; or it asks for what no model has:
            streams, masks.
    """
    _refuse_what_nobody_has(members, files)
    prompt = text(members, "prompt")
    if not prompt:
        raise missing("prompt")
    model = model_of(members)
    pictures = tuple(_pictures(members, files))
    if edit and not pictures:
        raise missing("image")
    if len(pictures) > _MOST_INPUTS:
        raise BadRequest(
            f"Invalid 'image': at most {_MOST_INPUTS} pictures are allowed.",
            param="image",
            code="array_above_max_length",
        )
    return ImageRequest(
        model=model,
        prompt=prompt,
        pictures=pictures,
        count=_count(members),
        size=_size(members.get("size")),
        base64=_wants_base64(members.get("response_format"), model),
        own={name: parsed(members[name]) for name in OWN if members.get(name) is not None},
        lost=tuple(_lost(members)),
    )


def _refuse_what_nobody_has(members: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    if parsed(members.get("stream")) is True or parsed(members.get("partial_images")):
        raise unsupported(
            "stream", "Pictures cannot be streamed: Qwen's models make them as a whole."
        )
    if members.get("mask") is not None or files.get("mask"):
        raise unsupported(
            "mask",
            "Masks are not supported: no document says that a model of Qwen takes one. Say in the "
            "prompt what is to be changed.",
        )


def _count(members: Mapping[str, Any]) -> int:
    count = parsed(members.get("n"))
    if count is None:
        return 1
    if isinstance(count, bool) or not isinstance(count, int):
        raise wrong_type("n", "an integer", count)
    if not 1 <= count <= MOST_PICTURES:
        raise BadRequest(
            f"Invalid 'n': expected a value between 1 and {MOST_PICTURES}.",
            param="n",
            code="integer_out_of_range",
        )
    return count


def _size(given: object) -> Size | str | None:
    if given is None or given in ("", "auto"):
        return None
    if isinstance(given, str) and re.fullmatch(r"[124][kK]", given):
        return given.upper()
    if (size := size_of(given)) is not None:
        return size
    raise BadRequest(
        "Invalid value for 'size': expected WIDTHxHEIGHT, such as 1024x1024, or auto.",
        param="size",
        code="invalid_value",
    )


def _wants_base64(given: object, model: str) -> bool:
    """OpenAI's newer models always send the picture itself, the older ones a URL by default."""
    if given is None or given == "":
        return model.rsplit("/", 1)[-1].startswith("gpt-image")
    if given not in ("url", "b64_json"):
        raise bad_value("response_format", given, ("url", "b64_json"))
    return given == "b64_json"


def _pictures(members: Mapping[str, Any], files: Mapping[str, Sequence[File]]) -> list[str]:
    found = [
        data_url_of(file, "image")
        for name in ("image", "image[]", "images", "images[]")
        for file in files.get(name, ())
    ]
    for name in ("image", "image[]", "images", "input_image"):
        given = parsed(members.get(name))
        for each in given if isinstance(given, list) else [given]:
            if each is not None:
                found.append(picture_url(each, name))
    return found


def _lost(members: Mapping[str, Any]) -> list[str]:
    lost = [
        name
        for name, nothing in _LOST.items()
        if members.get(name) not in (None, "") and parsed(members[name]) not in nothing
    ]
    if members.get("output_format") not in (None, "", "png"):
        lost.append("output_format")
    known = OWN | _LOST.keys() | _IGNORED | _READ
    return lost + [name for name in members if name not in known and members[name] is not None]


_READ: Final = frozenset(
    {"model", "prompt", "n", "size", "response_format", "image", "image[]", "images", "input_image"}
    | {"stream", "partial_images", "mask", "output_format"}
)


# --- for a model ---------------------------------------------------------------------------------


class NativeCalls(NamedTuple):
    """What a model is asked with: one body for each call."""

    road: Road
    bodies: list[bytes]
    changed: tuple[str, ...]


def native_calls(request: ImageRequest, *, model: str, strict: bool = False) -> NativeCalls:
    """Render a request for a model, within the model's limits.

    Raises:
        BadRequest: pictures that the model does not take; in strict mode, what it lacks.
    """
    limits = image_model(model)
    _check_inputs(request, limits, model)
    changes = Changes(strict=strict, reason=f"cannot be sent to {model} ")
    for name in request.lost:
        changes.lose(name, "because Qwen's models have no such parameter.")
    parameters = _parameters(request, limits, changes)
    size = _size_for(request, limits, changes)
    if size is not None:
        parameters["size"] = size
    counts = _counts(request.count, limits.most)
    if len(counts) > 1:
        changes.lose(
            "n",
            f"because the model makes at most {limits.most} at a time.",
            what=f"{len(counts)}-calls",
        )
    bodies = []
    for index, count in enumerate(counts):
        own = dict(parameters)
        if count > 1 or limits.needs_count:
            own["n"] = count
        if index and isinstance(seed := own.get("seed"), int):
            own["seed"] = (seed + index) % 2**31  # else all calls make the same pictures
        body = {"model": model, "input": _input(request, limits.road), "parameters": own}
        bodies.append(compact(body).encode())
    return NativeCalls(limits.road, bodies, changes.entries)


def _check_inputs(request: ImageRequest, limits: ImageModel, model: str) -> None:
    if len(request.pictures) > limits.inputs:
        most = f"at most {limits.inputs} pictures" if limits.inputs else "no pictures"
        raise BadRequest(
            f"Invalid 'image': the model `{model}` takes {most}.",
            param="image",
            code="too_many_images" if limits.inputs else "unsupported_parameter",
        )


def _parameters(request: ImageRequest, limits: ImageModel, changes: Changes) -> dict[str, Any]:
    parameters = {}
    for name, value in request.own.items():
        if name in limits.lacks:
            changes.lose(name, "because the model has no such parameter.")
        else:
            parameters[name] = value
    return parameters


def _size_for(request: ImageRequest, limits: ImageModel, changes: Changes) -> str | None:
    wanted = request.size
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if wanted in limits.named:
            return wanted
        side = int(wanted[0]) * 1024
        wanted = Size(side, side)
    if limits.snap is None:
        changes.lose("size", "because the model has no choice of sizes.")
        return None
    snapped = limits.snap(wanted)
    if snapped != wanted:
        changes.lose("size", "because the model does not make this size.", what=f"{snapped}")
    return f"{snapped.width}*{snapped.height}"


def _counts(wanted: int, most: int) -> list[int]:
    """How many pictures each call makes."""
    return [min(most, wanted - done) for done in range(0, wanted, most)]


def _input(request: ImageRequest, road: Road) -> dict[str, Any]:
    if road is Road.TEXT_TASK:
        return {"prompt": request.prompt}
    if road is Road.EDIT_TASK:
        return {"prompt": request.prompt, "images": request.pictures}
    # The pictures come first: a model takes the last one's shape.
    content = [*({"image": url} for url in request.pictures), {"text": request.prompt}]
    return {"messages": [{"role": "user", "content": content}]}
