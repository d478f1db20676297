"""By which road each family of models that transcribe is asked, and how much sound it takes.

From the vendor's pages on speech recognition, May to October 2026.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final


class Road(enum.Enum):
    """How a model is asked."""

    CHAT = "/chat/completions"
    GENERATION = "/api/v1/services/aigc/multimodal-generation/generation"
    #: A task, for a file at a URL.
    FILE = "/api/v1/services/audio/asr/transcription"


@dataclass(frozen=True)
class AsrModel:
    """One family.

    Attributes:
        list_of_urls: its tasks take several files, and give several results.
    """

    road: Road
    list_of_urls: bool = False


#: The model that tells times and takes long sound.
FILE_MODEL: Final = "qwen3-asr-flash-filetrans"
#: Of sound that is sent in a request: seconds, and characters of base64.
MOST_SECONDS: Final = 300.0
MOST_ENCODED: Final = 10_000_000

_ROWS: Final = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (r"qwen3-.*-filetrans", AsrModel(Road.FILE)),
        (r".*-filetrans", AsrModel(Road.FILE, list_of_urls=True)),
        (r"qwen-audio-|fun-asr-flash", AsrModel(Road.GENERATION)),
        (r"fun-asr|paraformer", AsrModel(Road.FILE, list_of_urls=True)),
        (r"", AsrModel(Road.CHAT)),
    )
)


def asr_model(name: str) -> AsrModel:
    """The family of a model, by its name."""
    name = name.rsplit("/", 1)[-1].lower()
    return next(model for pattern, model in _ROWS if pattern.match(name))
