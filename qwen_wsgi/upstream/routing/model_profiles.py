"""What is known of models without asking: a dated list, for hosts that list nothing themselves.

Live lists come first wherever a host has one; this table then only adds the limits, which live
lists of Model Studio do not tell. From Alibaba's model pages and qwen-code 0.24.4's presets.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.web import models as web_models

#: When this table was last compared with the vendor's pages: 2026-11-20.
AS_OF_EPOCH: Final = 1_795_132_800


@dataclass(frozen=True)
class ModelFacts:
    """Limits in tokens, and what goes in."""

    context: int | None
    max_output: int | None
    inputs: tuple[str, ...] = ("text",)


_TEXT: Final = ("text",)
_VISION: Final = ("text", "image", "video")
_OMNI: Final = ("text", "image", "audio", "video")
_M: Final = 1_000_000

FACTS: Final[Mapping[str, ModelFacts]] = {
    "qwen3.8-max": ModelFacts(_M, 131_072, _VISION),
    "qwen3.8-max-0902": ModelFacts(_M, 131_072, _VISION),
    "qwen3.8-max-preview": ModelFacts(_M, 131_072, _VISION),
    "qwen3.8-flash": ModelFacts(_M, 131_072, _VISION),
    "qwen3.8-omni-flash": ModelFacts(_M, 131_072, _OMNI),
    "qwen3.7-max": ModelFacts(_M, 65_536, _TEXT),
    "qwen3.7-plus": ModelFacts(_M, 65_536, _VISION),
    "qwen3.7-flash": ModelFacts(None, None, _VISION),
    "qwen3.6-plus": ModelFacts(_M, 65_536, _VISION),
    "qwen3.6-flash": ModelFacts(_M, 65_536, _VISION),
    "qwen3.5-plus": ModelFacts(_M, 65_536, _VISION),
    "qwen3.5-flash": ModelFacts(_M, 65_536, _VISION),
    "qwen3-max": ModelFacts(262_144, 65_536, _TEXT),
    "qwen3-max-2026-01-23": ModelFacts(262_144, 65_536, _TEXT),
    "qwen-plus": ModelFacts(_M, 32_768, _TEXT),
    "qwen-flash": ModelFacts(_M, 32_768, _TEXT),
    "qwen-max": ModelFacts(32_768, 8_192, _TEXT),
    "qwen-turbo": ModelFacts(131_072, 16_384, _TEXT),
    "qwen-long": ModelFacts(10 * _M, 8_192, _TEXT),
    "qwen3-coder-plus": ModelFacts(_M, 65_536, _TEXT),
    "qwen3-coder-flash": ModelFacts(_M, 65_536, _TEXT),
    "qwen3-coder-next": ModelFacts(262_144, 65_536, _TEXT),
    "coder-model": ModelFacts(_M, 65_536, _VISION),
    "qwen3-vl-plus": ModelFacts(262_144, 32_768, _VISION),
    "qwen3-vl-flash": ModelFacts(262_144, 32_768, _VISION),
    "qwen3.5-omni-plus": ModelFacts(262_144, 65_536, _OMNI),
    "qwen3.5-omni-flash": ModelFacts(262_144, 65_536, _OMNI),
    "qwen3-omni-flash": ModelFacts(65_536, 16_384, _OMNI),
    "qwen-mt-plus": ModelFacts(16_384, 8_192, _TEXT),
    "qwen-mt-flash": ModelFacts(16_384, 8_192, _TEXT),
    "qwen-vl-ocr": ModelFacts(38_192, 8_192, ("text", "image")),
    "qwen3.6-35b-a3b": ModelFacts(262_144, 65_536, _VISION),
    "qwen3.6-27b": ModelFacts(262_144, 65_536, _TEXT),
    "qwen3.5-397b-a17b": ModelFacts(262_144, 65_536, _TEXT),
    "deepseek-v4-pro": ModelFacts(_M, 393_216, _TEXT),
    "deepseek-v4-flash": ModelFacts(_M, 393_216, _TEXT),
    "deepseek-v3.2": ModelFacts(131_072, None, _TEXT),
    "glm-5.2": ModelFacts(_M, 131_072, _TEXT),
    "glm-5.1": ModelFacts(202_752, 131_072, _TEXT),
    "glm-5": ModelFacts(202_752, 131_072, _TEXT),
    "glm-4.7": ModelFacts(202_752, 16_384, _TEXT),
    "kimi-k3": ModelFacts(_M, 131_072, ("text", "image")),
    "kimi-k2.7-code": ModelFacts(262_144, None, _VISION),
    "kimi-k2.6": ModelFacts(262_144, None, _VISION),
    "kimi-k2.5": ModelFacts(262_144, 32_768, _VISION),
    "MiniMax-M2.5": ModelFacts(196_608, 65_536, _TEXT),
    "text-embedding-v4": ModelFacts(8_192, None, _TEXT),
    "text-embedding-v3": ModelFacts(8_192, None, _TEXT),
}

#: What an account of a family can be asked when its host does not say.
BUILT_IN: Final[Mapping[Family, tuple[str, ...]]] = {
    Family.DASHSCOPE: (
        "qwen3.8-max",
        "qwen3.8-flash",
        "qwen3.7-max",
        "qwen3.7-plus",
        "qwen3.6-plus",
        "qwen3.6-flash",
        "qwen3.5-plus",
        "qwen3.5-flash",
        "qwen3-max",
        "qwen-plus",
        "qwen-flash",
        "qwen3-coder-plus",
        "qwen3-coder-flash",
        "qwen3-vl-plus",
        "qwen3-vl-flash",
        "deepseek-v4-pro",
        "deepseek-v4-flash",
        "glm-5.1",
        "kimi-k3",
        "kimi-k2.7-code",
        "text-embedding-v4",
        "text-embedding-v3",
        "qwen3-vl-embedding",
        "qwen3-rerank",
        "qwen-image-3.0",
        "qwen-image-3.0-pro",
        "wan2.7-image",
        "wan2.7-image-pro",
        "z-image-turbo",
        "wan3.0-video",
        "wan2.7-t2v",
        "wan2.7-i2v",
        "qwen3-asr-flash",
        "qwen3-asr-flash-filetrans",
        "qwen3-tts-flash",
        "qwen-audio-3.1-tts-flash",
    ),
    Family.CODING_PLAN: (
        "qwen3.7-plus",
        "qwen3.6-plus",
        "qwen3.5-plus",
        "qwen3-max-2026-01-23",
        "qwen3-coder-plus",
        "qwen3-coder-next",
        "glm-5",
        "glm-4.7",
        "kimi-k2.5",
        "MiniMax-M2.5",
    ),
    Family.TOKEN_PLAN: (
        "qwen3.8-max",
        "qwen3.8-flash",
        "qwen3.7-max",
        "qwen3.7-plus",
        "qwen3.6-plus",
        "qwen3.6-flash",
        "deepseek-v4-pro",
        "deepseek-v3.2",
        "glm-5.2",
        "glm-5.1",
        "glm-5",
        "kimi-k2.7-code",
        "kimi-k2.6",
        "kimi-k2.5",
        "MiniMax-M2.5",
    ),
    Family.PORTAL: ("coder-model",),
    Family.WEB: tuple(web_models.fallback_entries()),
    Family.SANDBOX: (),
    Family.OTHER: (),
}


def facts_of(model: str) -> ModelFacts | None:
    """What is known of a model id; a vendor prefix (`Qwen/…`) and letter case do not matter."""
    name = model.rsplit("/", 1)[-1]
    return FACTS.get(name) or _FOLDED.get(name.lower())


_FOLDED: Final = {name.lower(): known for name, known in FACTS.items()}


# --- what models take of a request --------------------------------------------------------------


@dataclass(frozen=True)
class ModelProfile:
    """How a model takes the fields of a chat request that not every model takes alike.

    Attributes:
        thinks: whether it thinks when nobody says so; None if that is not known.
        switch: `enable_thinking` is taken, true and false. Without it the model always or never
            thinks, as `thinks` says.
        budget: `thinking_budget` is taken.
        efforts: OpenAI's levels of `reasoning_effort` and what is to be sent for them; empty if
            the field is not taken. A level that is missing has no counterpart.
        json_schema: `response_format` may be a JSON schema.
        json_thinking: `json_object` holds while the model thinks.
        total_limit: `max_completion_tokens` is taken.
        several: `n` from 2 to 4 is taken, without thinking and without tools.
        search: the `search_strategy` that `enable_search` needs, "" if none must be named; None if
            the model does not search in chat completions.
        cache: marks of `cache_control` have an effect.
        many_systems: every system message has a meaning of its own, such as a document.
    """

    thinks: bool | None = False
    switch: bool = False
    budget: bool = False
    efforts: Mapping[str, str] = field(default_factory=dict)
    json_schema: bool = False
    json_thinking: bool = False
    total_limit: bool = False
    several: bool = False
    search: str | None = None
    cache: bool = False
    many_systems: bool = False


def _efforts(**levels: str) -> Mapping[str, str]:
    """Which levels become what: `low="minimal low"` sends `low` for both."""
    return {name: sent for sent, names in levels.items() for name in names.split()}


#: Qwen3.8 takes every level by its own name; `none` stops the thinking.
_TIERS: Final = {
    name: name for name in ("none", "minimal", "low", "medium", "high", "xhigh", "max")
}
_TWO: Final = _efforts(high="minimal low medium high", max="xhigh max")
_THREE: Final = _efforts(low="minimal low", high="medium high", max="xhigh max")
_THREE_DATED: Final = _efforts(low="minimal low", high="medium high xhigh", max="max")

_NEVER: Final = ModelProfile()
_ALWAYS: Final = ModelProfile(thinks=True)
_CAN: Final = ModelProfile(switch=True, budget=True)
_DOES: Final = ModelProfile(thinks=True, switch=True, budget=True)
_QWEN3: Final = replace(_CAN, several=True, search="", cache=True)
_QWEN36: Final = replace(_DOES, total_limit=True, search="", cache=True)
_QWEN37: Final = replace(_QWEN36, json_schema=True, json_thinking=True)
_QWEN38: Final = replace(_QWEN37, efforts=_TIERS)
_QWEN38_OPEN: Final = replace(_QWEN38, json_schema=False, total_limit=False)
_DEEPSEEK3: Final = ModelProfile(switch=True, total_limit=True, search="")
_DEEPSEEK4: Final = replace(_DEEPSEEK3, thinks=True, efforts=_TWO, json_thinking=True)
_GLM5: Final = replace(_DOES, efforts=_TWO, total_limit=True)

#: Patterns of whole names in lower case; the first that matches counts. From Model Studio's pages
#: on chat completions, deep thinking, structured output, web search and context cache (2026-11). A
#: name that matches nothing is a model of which nothing is assumed.
_TRAITS: Final[tuple[tuple[str, ModelProfile], ...]] = (
    (r"qwen3\.8-(max|flash)(-.*)?", _QWEN38),
    (r"qwen3\.8-27b", _QWEN38_OPEN),
    (
        r"qwen3\.8-2\.4t-a95b",
        replace(_QWEN38_OPEN, switch=False, efforts={**_TIERS, "none": "low"}),
    ),
    (r"qwen3\.8-omni-flash", replace(_QWEN38_OPEN, search="agent", cache=False)),
    (r"qwen3\.7-max-(preview|2026-05-17)", replace(_QWEN37, switch=False, cache=False)),
    (r"qwen3\.7-(max|plus|flash)(-.*)?", _QWEN37),
    (r"qwen3\.6-max-preview", replace(_QWEN36, total_limit=False)),
    (r"qwen3\.[56]-(plus|flash)(-.*)?", _QWEN36),
    (r"qwen3\.[56]-\d+b(-a\d+b)?", replace(_DOES, search="")),
    (r"qwen3\.5-omni-(plus|flash)(-.*)?", ModelProfile(search="agent")),
    (r"qwen3-max(-preview|-2026-.*)?", _QWEN3),
    (r"qwen-(plus|flash)(-latest|-us)?", _QWEN3),
    (r"qwen-turbo(-latest)?", replace(_QWEN3, cache=False)),
    # Dated models think since the end of April 2025.
    (
        r"qwen-(plus|flash)-(2025-04-28|2025-(0[5-9]|1.)-..|202[6-9]-..-..)",
        replace(_QWEN3, cache=False),
    ),
    (r"qwen-plus-character", ModelProfile(several=True, search="", cache=True)),
    (r"qwen-flash-character(-.*)?", ModelProfile(search="")),
    (r"qwen-max(-.*)?", ModelProfile(search="")),
    (r"qwen-(long|doc)(-.*)?", ModelProfile(many_systems=True)),
    (r"qwen3-coder-(plus|flash)(-.*)?", ModelProfile(cache=True)),
    (r"qwen3-vl-(plus|flash)(-.*)?", replace(_CAN, cache=True)),
    (r"qwen3-omni-flash(-.*)?", ModelProfile(switch=True)),
    (r"qwen3-.*-thinking(-.*)?", replace(_ALWAYS, budget=True)),
    (r"qwen3-(coder|.*-instruct)(-.*)?", _NEVER),
    (r"qwen3-\d+(\.\d+)?b(-a\d+b)?", _DOES),
    (r"(qwq|qvq)-.*", _ALWAYS),
    (r"qwen-(vl|mt|math|coder)(-.*)?|qwen2.*", _NEVER),
    # An alias: what stands behind it changes, and with it whether it thinks.
    (r"coder-model", replace(_CAN, thinks=None, cache=True)),
    (
        r"deepseek-v4\.1-flash|deepseek-v4-(pro-0813|flash-0731)",
        replace(_DEEPSEEK4, efforts=_THREE_DATED),
    ),
    (r"deepseek-v4-(pro|flash)", _DEEPSEEK4),
    (r"deepseek-v3\.2", replace(_DEEPSEEK3, cache=True)),
    (r"deepseek-v3\.(1|2-exp)", _DEEPSEEK3),
    (r"deepseek-v3", replace(_DEEPSEEK3, switch=False)),
    (r"deepseek-r1(-0528)?", replace(_DEEPSEEK3, thinks=True, switch=False)),
    (
        r"glm-5\.3(-.*)?",
        replace(_GLM5, switch=False, budget=False, efforts={**_THREE, "none": "low"}),
    ),
    (r"glm-5\.1", replace(_GLM5, json_thinking=True, cache=True)),
    (r"glm-5(\.2)?", _GLM5),
    (r"glm-4\.[67]", _DOES),
    # Model Studio takes `enable_thinking: false` of it, though qwen-code calls it mandatory.
    (r"kimi-k3", replace(_GLM5, budget=False, efforts=_THREE, json_thinking=True)),
    (r"kimi-k2\.7-code", replace(_ALWAYS, budget=True, total_limit=True, cache=True)),
    (r"kimi-k2-thinking", replace(_ALWAYS, budget=True, json_thinking=True)),
    (r"kimi-k2\.[56]", replace(_CAN, total_limit=True, cache=True)),
    (r"minimax-m2\.5", replace(_ALWAYS, total_limit=True)),
    (r"minimax-m2\.1", replace(_ALWAYS, search="")),
)


@functools.lru_cache(maxsize=1024)
def profile_of(model: str) -> ModelProfile | None:
    """How a model takes a request's fields; None if that is not known.

    A name with a slash is another vendor's own server behind Model Studio's gateway, whose fields
    are its own.
    """
    name = model.lower()
    return next((known for pattern, known in _TRAITS if re.fullmatch(pattern, name)), None)


def effort_levels(model: str) -> tuple[str, ...]:
    """OpenAI's levels of `reasoning_effort` that make a difference at a model, the lowest first.

    A model that only takes budgets has those for which there is one, and `high`, its own limit.
    """
    profile = profile_of(model)
    if profile is None:
        return ()
    if profile.efforts:
        return tuple(name for name, sent in profile.efforts.items() if name == sent)
    if not profile.switch:
        return ()
    return ("low", "medium", "high") if profile.budget else ("high",)
