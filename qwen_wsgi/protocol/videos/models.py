"""What each model of videos takes: how pictures go in, which sizes, how long, which parameters.

From the vendor's model pages of May to October 2026 (Model Studio, video generation).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from qwen_wsgi.protocol.media import Size, shape_distance

_TASKS: Final = "/api/v1/services/aigc/"
#: Most models are asked here, below the host's name.
PATH: Final = _TASKS + "video-generation/video-synthesis"
#: First and last frame, and a speaking portrait.
IMAGE_PATH: Final = _TASKS + "image2video/video-synthesis"


class Form(enum.Enum):
    """How a model is told the size of its video."""

    #: `resolution` (720P) and `ratio` (16:9).
    SHAPE = "shape"
    #: `resolution` alone: the picture that goes in has the shape.
    TIER = "tier"
    #: `size` (1280*720), one of a list.
    PIXELS = "pixels"


@dataclass(frozen=True)
class VideoModel:
    """The limits of one model.

    Attributes:
        form: how it is told a size.
        tiers: resolutions, by the number in their name: 720 is `720P`.
        sizes: what `PIXELS` may be.
        seconds: the shortest and the longest; or the only ones, as a list.
        chooses: it takes −1 seconds, and then chooses how long.
        picture: the member of `input` for a picture, or a type of `media`; "" takes none.
        media: what `picture` names is a type of `media`.
        inputs: further members of `input` that it takes.
        parameters: its parameters besides those for the size and the time.
        size: of a video for which none was wanted; "auto" where the host or the picture decides.
        path: behind the host's name.
    """

    form: Form
    tiers: tuple[int, ...] = ()
    sizes: tuple[Size, ...] = ()
    seconds: range | tuple[int, ...] = range(2, 16)
    chooses: bool = False
    picture: str = ""
    media: bool = False
    inputs: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset({"seed", "prompt_extend", "watermark"})
    size: str = "auto"
    path: str = PATH

    def nearest_seconds(self, wanted: int) -> int | None:
        """The nearest time that it makes; None where it has no choice at all."""
        if not self.seconds:
            return None
        if wanted == -1 and self.chooses:
            return wanted
        return min(self.seconds, key=lambda each: (abs(each - wanted), each))

    def nearest_tier(self, named: int) -> int:
        """The nearest resolution to one by its number."""
        return min(self.tiers, key=lambda tier: (abs(tier - named), tier))

    def tier_for(self, wanted: Size) -> int:
        """The resolution for a size: the one that it has, else by its shorter side."""
        for (tier, _), size in _PIXELS.items():
            if size == wanted and tier in self.tiers:
                return tier
        # As OpenAI's sizes mean it: 1024x1792 is nearer to 1080P than to 720P.
        short = min(wanted)
        return self.nearest_tier(480 if short < 600 else 720 if short < 900 else 1080)


class Ratio(NamedTuple):
    """A shape as hosts name it."""

    name: str
    width: int
    height: int


RATIOS: Final = (
    Ratio("16:9", 16, 9),
    Ratio("9:16", 9, 16),
    Ratio("1:1", 1, 1),
    Ratio("4:3", 4, 3),
    Ratio("3:4", 3, 4),
)


def nearest_ratio(wanted: Size) -> Ratio:
    """The nearest shape."""
    return min(
        RATIOS, key=lambda ratio: round(shape_distance(Size(ratio.width, ratio.height), wanted), 6)
    )


#: Pixels of a resolution and a shape (wan2.7's page, May 2026); others are near these.
_PIXELS: Final = {
    (480, "16:9"): Size(832, 480),
    (480, "9:16"): Size(480, 832),
    (480, "1:1"): Size(624, 624),
    (720, "16:9"): Size(1280, 720),
    (720, "9:16"): Size(720, 1280),
    (720, "1:1"): Size(960, 960),
    (720, "4:3"): Size(1104, 832),
    (720, "3:4"): Size(832, 1104),
    (1080, "16:9"): Size(1920, 1080),
    (1080, "9:16"): Size(1080, 1920),
    (1080, "1:1"): Size(1440, 1440),
    (1080, "4:3"): Size(1648, 1248),
    (1080, "3:4"): Size(1248, 1648),
}


def pixels_of(tier: int, ratio: str) -> str:
    """The size of a video by its resolution and shape: `1280x720`; "auto" where it is not known."""
    size = _PIXELS.get((tier, ratio))
    return "auto" if size is None else str(size)


def _listed(*tiers: int, odd: Sequence[Size] = ()) -> tuple[Size, ...]:
    return (*(size for (tier, _), size in _PIXELS.items() if tier in tiers), *odd)


_NEGATIVE: Final = frozenset({"negative_prompt"})
_COMMON: Final = frozenset({"seed", "prompt_extend", "watermark"})
_SHOTS: Final = _COMMON | {"shot_type"}
_FRAMES: Final = frozenset({"first_frame_url", "last_frame_url"})
_WIDE: Final = str(Size(1920, 1080))


def _newer(kind: str, tiers: tuple[int, ...]) -> VideoModel:
    """wan2.7 and happyhorse: shapes and tiers, and everything that goes in as `media`."""
    shaped = Form.TIER if kind == "i2v" else Form.SHAPE
    picture = {"t2v": "", "i2v": "first_frame", "r2v": "reference_image"}[kind]
    return VideoModel(
        shaped,
        tiers,
        picture=picture,
        media=bool(picture),
        inputs=_NEGATIVE | ({"audio_url"} if kind == "t2v" else {"media"}),
        size="auto" if kind == "i2v" else _WIDE,
    )


def _older(
    kind: str, tiers: tuple[int, ...], seconds: range | tuple[int, ...], *more: str
) -> VideoModel:
    """wan2.6 and before: sizes in pixels, or the shape of the picture that goes in.

    Args:
        more: inputs and parameters.
    """
    inputs = _NEGATIVE | {each for each in more if each != "shot_type"}
    parameters = _SHOTS if "shot_type" in more else _COMMON
    if kind == "i2v":
        inputs |= {"img_url"}
        return VideoModel(
            Form.TIER,
            tiers,
            seconds=seconds,
            picture="img_url",
            inputs=inputs,
            parameters=parameters,
        )
    if kind == "r2v":
        inputs |= {"reference_urls"}
    return VideoModel(
        Form.PIXELS,
        sizes=_listed(*tiers),
        seconds=seconds,
        picture="reference_urls" if kind == "r2v" else "",
        inputs=inputs,
        parameters=parameters,
    )


#: The first row whose pattern begins the name counts.
_ROWS: Final = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (
            r"wan3",
            VideoModel(
                Form.SHAPE,
                (480, 720, 1080),
                seconds=range(2, 31),
                chooses=True,
                picture="first_frame",
                media=True,
                inputs=frozenset({"media"}),
                parameters=_COMMON | {"audio"},
            ),
        ),
        (r"happyhorse-1\.0-t2v", _newer("t2v", (720, 1080))),
        (r"happyhorse-1\.0-i2v", _newer("i2v", (720, 1080))),
        (r"happyhorse-1\.0-r2v", _newer("r2v", (720, 1080))),
        (r"happyhorse-.*t2v", _newer("t2v", (480, 720, 1080))),
        (r"happyhorse-.*i2v", _newer("i2v", (480, 720, 1080))),
        (r"happyhorse-.*r2v", _newer("r2v", (480, 720, 1080))),
        (r"wan2\.7-t2v", _newer("t2v", (720, 1080))),
        (r"wan2\.7-i2v", _newer("i2v", (720, 1080))),
        (r"wan2\.7-r2v", _newer("r2v", (720, 1080))),
        (r"wan2\.6-t2v", _older("t2v", (720, 1080), range(2, 16), "audio_url", "shot_type")),
        (r"wan2\.6-i2v", _older("i2v", (720, 1080), range(2, 16), "audio_url", "shot_type")),
        (r"wan2\.6-r2v", _older("r2v", (720, 1080), range(2, 16), "shot_type")),
        (r"wan2\.5-t2v", _older("t2v", (480, 720, 1080), (5, 10), "audio_url")),
        (r"wan2\.5-i2v", _older("i2v", (480, 720, 1080), (5, 10), "audio_url")),
        (r"wan2\.2-t2v", _older("t2v", (480, 1080), (5,))),
        (r"wan2\.2-i2v", _older("i2v", (480, 720, 1080), (5,))),
        (
            r"wan.*-kf2v",
            VideoModel(
                Form.TIER,
                (480, 720, 1080),
                seconds=(5,),
                picture="first_frame_url",
                inputs=_NEGATIVE | _FRAMES,
                path=IMAGE_PATH,
            ),
        ),
        (
            r"wan.*-s2v",
            VideoModel(
                Form.TIER,
                (480, 720),
                seconds=(),  # as long as the sound
                picture="image_url",
                inputs=frozenset({"image_url", "audio_url"}),
                parameters=frozenset(),
                path=IMAGE_PATH,
            ),
        ),
        (r"wanx.*-t2v", _older("t2v", (480, 720), (5,))),
        (r"wanx.*-i2v", _older("i2v", (480, 720), (5,))),
    )
)

#: Inputs and parameters of Qwen's own that any model has; a client may send them as they are.
OWN_INPUTS: Final = frozenset(
    {"negative_prompt", "audio_url", "media", "img_url", "reference_urls"} | _FRAMES
)
OWN_PARAMETERS: Final = _SHOTS | {"audio"}

#: For a model of a name that this table does not have yet: as the newest, and the host decides.
_UNKNOWN: Final = VideoModel(
    Form.SHAPE,
    (480, 720, 1080),
    seconds=range(1, 61),
    chooses=True,
    picture="first_frame",
    media=True,
    inputs=OWN_INPUTS,
    parameters=OWN_PARAMETERS,
)


def video_model(name: str) -> VideoModel:
    """The limits of a model, by its name; those of an unknown one are the host's business."""
    name = name.rsplit("/", 1)[-1].lower()
    return next((model for pattern, model in _ROWS if pattern.match(name)), _UNKNOWN)
