"""Reads requests for videos, JSON or multipart, and renders them for a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.media import (
    File,
    Size,
    data_url_of,
    nearest_size,
    parsed,
    picture_url,
    size_of,
)
from qwen_wsgi.protocol.validation import (
    bad_value,
    missing,
    model_of,
    text,
    unsupported,
    wrong_type,
)
from qwen_wsgi.protocol.videos.models import (
    OWN_INPUTS,
    OWN_PARAMETERS,
    Form,
    VideoModel,
    nearest_ratio,
    pixels_of,
    video_model,
)

#: What hosts make where nobody says how long; it is always sent, so that it can be told.
_SECONDS: Final = 5
_LONGEST_S: Final = 3600
#: No model reads more (wan3).
_MOST_PROMPT_CHARS: Final = 20_000
#: wan3 takes 20 things together.
_MOST_MEDIA: Final = 20

#: Members with a picture: OpenAI's, and those of older clients.
_PICTURES: Final = ("input_reference", "image_url", "image")
_SHAPES: Final = ("16:9", "9:16", "1:1", "4:3", "3:4", "adaptive")
_READ: Final = frozenset(
    {"model", "prompt", "seconds", "duration", "size", "resolution", "ratio", "async", "n"}
    | set(_PICTURES)
)
#: Members that change nothing of the video.
_IGNORED: Final = frozenset({"user", "metadata", "extra_body", "response_format"})


@dataclass(frozen=True)
class VideoRequest:
    """A checked request.

    Attributes:
        picture: a URL, which may be a data URL; "" for none.
        seconds: as wanted; −1 lets the model choose; None if the client does not say.
        size: in pixels, or None for the model's own choice.
        tier, ratio: Qwen's `resolution` (720 for `720P`) and `ratio`, where the client names them
            itself.
        own: Qwen's own members, by name.
        lost: members that no model has, by name.
        wait: for the older form: the answer waits for the video.
    """

    model: str
    prompt: str
    picture: str = ""
    seconds: int | None = None
    size: Size | None = None
    tier: int | None = None
    ratio: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    wait: bool = True


def parse_request(
    members: Mapping[str, Any], files: Mapping[str, Sequence[File]] = {}
) -> VideoRequest:
    """Read a request for a video.

    Args:
        members: of the JSON, or the fields of a form, whose values are texts.
        files: of a form, by name.

    Raises:
        BadRequest: a member is missing or of a wrong type.
    """
    own = _own(members)
    picture = _picture(members, files)
    return VideoRequest(
        model=model_of(members),
        prompt=_prompt(members, needed=not (picture or own.keys() & OWN_INPUTS)),
        picture=picture,
        seconds=_seconds(members),
        size=_size(members.get("size")),
        tier=_tier(members.get("resolution")),
        ratio=_ratio(members.get("ratio")),
        own=own,
        lost=tuple(_lost(members)),
        wait=parsed(members.get("async")) is not True,
    )


def _prompt(members: Mapping[str, Any], *, needed: bool) -> str:
    prompt = text(members, "prompt") or ""
    if needed and not prompt:
        raise missing("prompt")
    if len(prompt) > _MOST_PROMPT_CHARS:
        raise BadRequest(
            f"Invalid 'prompt': string too long. Expected at most {_MOST_PROMPT_CHARS} characters.",
            param="prompt",
            code="string_above_max_length",
        )
    return prompt


def _picture(members: Mapping[str, Any], files: Mapping[str, Sequence[File]]) -> str:
    for name in _PICTURES:
        for file in files.get(name, ()):
            if file.content_type.startswith(("video/", "audio/")):
                raise unsupported(
                    name,
                    "Videos and sounds cannot be sent along, because Qwen's hosts read them from a "
                    'URL only: name it in \'media\' ([{"type": "reference_video", "url": …}]).',
                )
            return data_url_of(file, name)
        if (given := parsed(members.get(name))) not in (None, "", [], {}):
            return picture_url(given, name)
    return ""


def _seconds(members: Mapping[str, Any]) -> int | None:
    name = "seconds" if members.get("seconds") is not None else "duration"
    seconds = parsed(members.get(name))
    if seconds is None or seconds == "":
        return None
    if isinstance(seconds, float) and seconds.is_integer():
        seconds = int(seconds)
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise wrong_type(name, "a whole number of seconds", seconds)
    if seconds != -1 and not 1 <= seconds <= _LONGEST_S:
        raise BadRequest(
            f"Invalid '{name}': expected a value between 1 and {_LONGEST_S}.",
            param=name,
            code="integer_out_of_range",
        )
    return seconds


def _size(given: object) -> Size | None:
    if given is None or given in ("", "auto"):
        return None
    if (size := size_of(given)) is not None:
        return size
    raise BadRequest(
        "Invalid value for 'size': expected WIDTHxHEIGHT, such as 1280x720.",
        param="size",
        code="invalid_value",
    )


def _tier(given: object) -> int | None:
    if given is None or given == "":
        return None
    match = re.fullmatch(r"(\d{3,4})[pP]", given) if isinstance(given, str) else None
    if match is None:
        raise bad_value("resolution", given, ("480P", "720P", "1080P"))
    return int(match[1])


def _ratio(given: object) -> str:
    if given is None or given == "":
        return ""
    if given not in _SHAPES:
        raise bad_value("ratio", given, _SHAPES)
    return str(given)


def _own(members: Mapping[str, Any]) -> dict[str, Any]:
    own = {}
    for name in (OWN_INPUTS | OWN_PARAMETERS) & members.keys():
        value = members[name]
        if value is None or value == "":
            continue
        # A prompt that looks like JSON stays what it is.
        own[name] = value if name == "negative_prompt" else parsed(value)
    for name in ("media", "reference_urls"):
        if name in own and not (isinstance(own[name], list) and len(own[name]) <= _MOST_MEDIA):
            raise BadRequest(
                f"Invalid '{name}': expected an array of at most {_MOST_MEDIA}.",
                param=name,
                code="invalid_type",
            )
    return own


def _lost(members: Mapping[str, Any]) -> list[str]:
    known = OWN_INPUTS | OWN_PARAMETERS | _READ | _IGNORED
    lost = [name for name, value in members.items() if name not in known and value is not None]
    if parsed(members.get("n")) not in (None, "", 1):
        lost.append("n")
    return lost


# --- for a model ---------------------------------------------------------------------------------


class NativeCall(NamedTuple):
    """What a model is asked with.

    Attributes:
        path: behind the host's name.
        size: of the video, as far as it is known now: `1280x720`, or `auto`.
        seconds: of the video; "auto" where the model chooses.
    """

    path: str
    body: bytes
    changed: tuple[str, ...]
    size: str
    seconds: str


def native_call(request: VideoRequest, *, model: str, strict: bool = False) -> NativeCall:
    """Render a request for a model, within the model's limits.

    Raises:
        BadRequest: a picture for a model that takes none; in strict mode, what it lacks.
    """
    limits = video_model(model)
    changes = Changes(strict=strict, reason=f"cannot be sent to {model} ")
    for name in request.lost:
        changes.lose(name, "because Qwen's models have no such parameter.")
    inputs, parameters = _split(request, limits, changes)
    _add_picture(request, limits, model, inputs)
    shape, size = _shape(request, limits, changes)
    parameters |= shape
    seconds = _time(request, limits, changes)
    if seconds is not None:
        parameters["duration"] = seconds
    if request.prompt:
        inputs = {"prompt": request.prompt, **inputs}
    body = {"model": model, "input": inputs, "parameters": parameters}
    return NativeCall(
        limits.path,
        json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"),
        changes.entries,
        size,
        "auto" if seconds in (None, -1) else str(seconds),
    )


def _split(
    request: VideoRequest, limits: VideoModel, changes: Changes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Qwen's own members, as far as the model has them: of `input`, and of `parameters`."""
    inputs, parameters = {}, {}
    for name, value in request.own.items():
        if name in limits.inputs:
            inputs[name] = value
        elif name in limits.parameters:
            parameters[name] = value
        else:
            changes.lose(name, "because the model has no such parameter.")
    return inputs, parameters


def _add_picture(
    request: VideoRequest, limits: VideoModel, model: str, inputs: dict[str, Any]
) -> None:
    """Put the client's picture where the model looks for it."""
    if not request.picture:
        return
    if not limits.picture:
        raise BadRequest(
            f"Invalid 'input_reference': the model `{model}` makes videos from text alone. A model "
            "with -i2v in its name begins with a picture.",
            param="input_reference",
            code="unsupported_parameter",
        )
    if limits.media:
        entry = {"type": limits.picture, "url": request.picture}
        inputs["media"] = [entry, *inputs.get("media", ())]
    elif limits.picture == "reference_urls":
        inputs["reference_urls"] = [request.picture, *inputs.get("reference_urls", ())]
    else:
        inputs.setdefault(limits.picture, request.picture)


def _shape(
    request: VideoRequest, limits: VideoModel, changes: Changes
) -> tuple[dict[str, Any], str]:
    """The parameters for the size, and the size that the video will have."""
    if limits.form is Form.PIXELS:
        return _pixels(request, limits, changes)
    parameters: dict[str, Any] = {}
    tier = None
    if request.tier is not None:
        tier = limits.nearest_tier(request.tier)
        if tier != request.tier:
            changes.lose("resolution", "because the model does not make it.", what=f"{tier}P")
    elif request.size is not None:
        tier = limits.tier_for(request.size)
    if tier is not None:
        parameters["resolution"] = f"{tier}P"
    ratio = request.ratio
    if limits.form is Form.TIER:
        if ratio:
            changes.lose("ratio", "because the picture has the shape.")
        if request.size is not None:
            changes.note("size", f"{tier}P-in-the-shape-of-the-picture")
        return parameters, "auto"
    if not ratio and request.size is not None:
        ratio = nearest_ratio(request.size).name
    if ratio:
        parameters["ratio"] = ratio
    made = limits.size
    if parameters:
        chosen = limits.size == "auto"  # by the host, whatever is left out
        made = pixels_of(tier or (0 if chosen else 1080), ratio or ("" if chosen else "16:9"))
    if request.size is not None and made != str(request.size):
        named = "-".join(filter(None, (parameters["resolution"], ratio.replace(":", "x"))))
        changes.lose("size", "because the model does not make this size.", what=named)
    return parameters, made


def _pixels(
    request: VideoRequest, limits: VideoModel, changes: Changes
) -> tuple[dict[str, Any], str]:
    """For a model with a list of sizes."""
    wanted = request.size
    if wanted is None and (request.tier or request.ratio):
        wanted = size_of(pixels_of(request.tier or 720, request.ratio or "16:9"))
    if wanted is None:
        return {}, limits.size
    nearest = nearest_size(wanted, limits.sizes)
    if nearest != wanted:
        changes.lose("size", "because the model does not make this size.", what=str(nearest))
    return {"size": f"{nearest.width}*{nearest.height}"}, str(nearest)


def _time(request: VideoRequest, limits: VideoModel, changes: Changes) -> int | None:
    """The seconds to ask for."""
    wanted = _SECONDS if request.seconds is None else request.seconds
    nearest = limits.nearest_seconds(wanted)
    if request.seconds is not None and nearest != wanted:
        changes.lose(
            "seconds",
            "because the model does not make videos of this length.",
            what="dropped" if nearest is None else str(nearest),
        )
    return nearest
