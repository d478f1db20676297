"""What each family of models that speak takes, and which sound it makes.

From the vendor's pages on speech synthesis, May to October 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class SpeechModel:
    """One family.

    Attributes:
        path: of its route, below the host.
        encoded: formats that the model makes itself; `pcm` and `wav` are made of its samples.
        most: characters of a text.
        speed: it has a rate.
        instructions: the name of the parameter for how to speak; "" if there is none.
        voices: its voices in the place of OpenAI's, by OpenAI's names.
        settable: format, sample rate and the like can be chosen.
    """

    path: str
    encoded: frozenset[str]
    most: int
    speed: bool = False
    instructions: str = ""
    voices: Mapping[str, str] | None = None
    settable: bool = False


#: Samples of a second; those of qwen3-tts are fixed, and OpenAI's `pcm` has as many.
SAMPLE_RATE: Final = 24_000

_GENERATION: Final = "/api/v1/services/aigc/multimodal-generation/generation"
_SYNTHESIZER: Final = "/api/v1/services/audio/tts/SpeechSynthesizer"

#: By the sound of OpenAI's voices, as its pages describe them.
_QWEN_VOICES: Final = {
    "alloy": "Cherry",
    "ash": "Ethan",
    "ballad": "Ryan",
    "cedar": "Ryan",
    "coral": "Serena",
    "echo": "Ethan",
    "fable": "Ryan",
    "marin": "Jennifer",
    "nova": "Chelsie",
    "onyx": "Kai",
    "sage": "Maia",
    "shimmer": "Vivian",
    "verse": "Aiden",
}
#: The vendor's page names two; which of OpenAI's stands for which is a matter of taste.
_AUDIO_VOICES: Final = {
    name: "longanlingxin"
    if name in ("ash", "ballad", "cedar", "echo", "fable", "onyx", "verse")
    else "longanhuan_v3.6"
    for name in _QWEN_VOICES
}
_ENCODED: Final = frozenset({"mp3", "opus"})

_ROWS: Final = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (
            r"qwen-audio-.*-tts-next",
            SpeechModel(
                _SYNTHESIZER, _ENCODED, 3000, True, "instruction", _AUDIO_VOICES, settable=True
            ),
        ),
        (
            r"qwen-audio-",
            SpeechModel(
                _SYNTHESIZER, _ENCODED, 10_000, True, "instruction", _AUDIO_VOICES, settable=True
            ),
        ),
        # Its voices stand in no page that we have: QWEN_PROXY_VOICES names them.
        (
            r"cosyvoice",
            SpeechModel(_SYNTHESIZER, _ENCODED, 10_000, True, "instruction", None, settable=True),
        ),
        (
            r"qwen3-tts-instruct",
            SpeechModel(_GENERATION, frozenset(), 600, False, "instructions", _QWEN_VOICES),
        ),
        (r"qwen-tts", SpeechModel(_GENERATION, frozenset(), 300, voices=_QWEN_VOICES)),
        (r"", SpeechModel(_GENERATION, frozenset(), 600, voices=_QWEN_VOICES)),
    )
)


def speech_model(name: str) -> SpeechModel:
    """The family of a model, by its name."""
    name = name.rsplit("/", 1)[-1].lower()
    return next(model for pattern, model in _ROWS if pattern.match(name))
