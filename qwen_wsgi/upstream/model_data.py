"""What is known of models without asking: a dated list, for hosts that list nothing themselves.

Live lists come first wherever a host has one; this table then only adds the limits, which live
lists of Model Studio do not tell. From Alibaba's model pages and qwen-code 0.24.4's presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qwen_wsgi.upstream.hosts import Family

#: The day this table was last compared with the vendor's pages.
AS_OF: Final = "2026-11-20"
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
    Family.SANDBOX: (),
    Family.OTHER: (),
}


def facts(model: str) -> ModelFacts | None:
    """What is known of a model id; a vendor prefix (`Qwen/…`) and letter case do not matter."""
    name = model.rsplit("/", 1)[-1]
    return FACTS.get(name) or _FOLDED.get(name.lower())


_FOLDED: Final = {name.lower(): known for name, known in FACTS.items()}
