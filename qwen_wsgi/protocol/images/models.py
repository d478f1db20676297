"""What each model of pictures takes: how many, which sizes, which parameters, and its route.

From the vendor's model pages of May to October 2026 (Model Studio, image generation and editing).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qwen_wsgi.protocol.media import Size, nearest_size


class Road(enum.Enum):
    """How a model is asked; the value is the path below the host."""

    #: At once, with a list of messages.
    SYNC = "/api/v1/services/aigc/multimodal-generation/generation"
    #: By a task, with a prompt (qwen-image's old form, wan 2.5 and before).
    TEXT_TASK = "/api/v1/services/aigc/text2image/image-synthesis"
    #: By a task, with a prompt and pictures.
    EDIT_TASK = "/api/v1/services/aigc/image2image/image-synthesis"


@dataclass(frozen=True)
class ImageModel:
    """The limits of one model.

    Attributes:
        most: pictures of one call.
        inputs: pictures that may go in; 0 for a model that only makes new ones.
        snap: the nearest size that it takes; None for a model without a choice.
        named: sizes by a name: `2K`.
        lacks: parameters of its own kind that it does not take.
        needs_count: `n` is always sent, because the pages do not agree on its default.
    """

    most: int
    inputs: int
    snap: Callable[[Size], Size] | None
    named: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    road: Road = Road.SYNC
    needs_count: bool = False


#: Qwen's own parameters, which clients may send besides OpenAI's. All models but those that lack
#: some take these.
COMMON: Final = frozenset({"negative_prompt", "prompt_extend", "watermark", "seed"})
#: And some models each of these; a wrong one is refused by the host, which names it.
OWN: Final = COMMON | {
    "prompt_extend_mode",
    "thinking_mode",
    "enable_sequential",
    "bbox_list",
    "color_palette",
    "enable_interleave",
}

#: Hosts round sides to multiples of 16.
_STEP: Final = 16
_WIDEST: Final = 8.0


def _listed(*texts: str) -> Callable[[Size], Size]:
    """Sizes of a list."""
    sizes = [Size(*map(int, text.split("x"))) for text in texts]
    return lambda wanted: nearest_size(wanted, sizes)


def _pixels(least: int, most: int, *, widest: float = _WIDEST) -> Callable[[Size], Size]:
    """Sizes within a number of pixels and a shape: the shape is kept as far as it may."""

    def snap(wanted: Size) -> Size:
        ratio = min(max(wanted.ratio, 1 / widest), widest)
        pixels = min(max(wanted.pixels, least), most)
        if ratio == wanted.ratio and pixels == wanted.pixels:
            return wanted
        height = math.sqrt(pixels / ratio)
        # Down to stay below the most, or up to reach the least.
        size = rounded(height * ratio, height, math.floor)
        return size if size.pixels >= least else rounded(height * ratio, height, math.ceil)

    def rounded(width: float, height: float, way: Callable[[float], int]) -> Size:
        wide, high = _stepped(width, way), _stepped(height, way)
        # Rounding may have made a narrow shape narrower still.
        most_high, most_wide = (_stepped(side * widest, math.floor) for side in (wide, high))
        return Size(min(wide, most_wide), min(high, most_high))

    return snap


def _sides(least: int, most: int) -> Callable[[Size], Size]:
    """Sizes whose sides are within a range."""

    def snap(wanted: Size) -> Size:
        shrink = min(1.0, most / max(wanted.width, wanted.height))
        grow = max(1.0, least / min(wanted.width, wanted.height))
        factor = shrink if shrink < 1 else grow
        if factor == 1.0:
            return wanted
        return Size(
            *(
                min(max(_stepped(side * factor, round), least), most)
                for side in (wanted.width, wanted.height)
            )
        )

    return snap


def _stepped(side: float, rounded: Callable[[float], int]) -> int:
    return max(_STEP, rounded(side / _STEP) * _STEP)


_K: Final = 1024
_OLD_SIZES: Final = _listed("1664x928", "1472x1104", "1328x1328", "1104x1472", "928x1664")
_NO_EXTENSION: Final = frozenset({"negative_prompt", "prompt_extend"})
_WAN_SIZES: Final = ("1K", "2K")

#: The first row whose pattern begins the name counts.
_ROWS: Final = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (r"qwen-image-edit$", ImageModel(1, 3, None, lacks=frozenset({"prompt_extend"}))),
        (r"qwen-image-edit-", ImageModel(6, 3, _sides(512, 2048))),
        (r"qwen-image-2\.1", ImageModel(6, 10, _pixels(512**2, 2048**2))),
        (r"qwen-image-[23]\.\d", ImageModel(6, 3, _pixels(512**2, 2048**2))),
        (r"qwen-image", ImageModel(1, 0, _OLD_SIZES)),
        (r"z-image", ImageModel(1, 0, _pixels(512**2, 2048**2))),
        (
            r"wan2\.7-image-pro",
            ImageModel(
                4,
                9,
                _pixels(768**2, 4096**2),
                named=("1K", "2K", "4K"),
                lacks=_NO_EXTENSION,
                needs_count=True,
            ),
        ),
        (
            r"wan2\.7-image",
            ImageModel(
                4,
                9,
                _pixels(768**2, 2048**2),
                named=_WAN_SIZES,
                lacks=_NO_EXTENSION,
                needs_count=True,
            ),
        ),
        (r"wan2\.6-image", ImageModel(4, 4, _pixels(768**2, 2048**2), named=_WAN_SIZES)),
        (r"wan2\.6-t2i", ImageModel(4, 0, _pixels(1280**2, 1440**2, widest=4.0))),
        (
            r"wan2\.5-i2i",
            ImageModel(4, 3, _pixels(768**2, 1280**2, widest=4.0), road=Road.EDIT_TASK),
        ),
        (r"wan", ImageModel(4, 0, _pixels(512**2, 1440**2, widest=4.0), road=Road.TEXT_TASK)),
    )
)
#: For a model of a name that this table does not have yet.
_UNKNOWN: Final = ImageModel(6, 10, lambda size: size)


def image_model(name: str) -> ImageModel:
    """The limits of a model, by its name; those of an unknown one are the host's business."""
    name = name.rsplit("/", 1)[-1].lower()
    return next((model for pattern, model in _ROWS if pattern.match(name)), _UNKNOWN)
