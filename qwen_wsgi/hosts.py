"""Classifies the host of a base URL by its name, because the hosts do not say what they are."""

from __future__ import annotations

import enum
import re
from typing import Final
from urllib.parse import urlsplit


class Family(enum.Enum):
    """Hosts that behave alike."""

    #: Model Studio pay as you go, any region, also workspace hosts.
    DASHSCOPE = "dashscope"
    CODING_PLAN = "coding-plan"
    TOKEN_PLAN = "token-plan"
    #: The OAuth portal.
    PORTAL = "portal"
    #: Our own fake of Model Studio.
    SANDBOX = "sandbox"
    #: Any other OpenAI-compatible server.
    OTHER = "other"

    @property
    def is_qwen(self) -> bool:
        """Whether it is Alibaba's own gateway; those have limits and are always sent `stream`."""
        return self is not Family.OTHER


def family_of(base_url: str) -> Family:
    """The family of a base URL's host (Model Studio's "Base URL overview", 2026-10)."""
    host = (urlsplit(base_url).hostname or "").lower()
    if host.startswith(("coding.", "coding-intl.")) and host.endswith(".aliyuncs.com"):
        return Family.CODING_PLAN
    if host.startswith("token-plan.") and host.endswith(".maas.aliyuncs.com"):
        return Family.TOKEN_PLAN
    if host == "portal.qwen.ai":
        return Family.PORTAL
    if host.endswith((".maas.aliyuncs.com", ".alibaba-inc.com", ".aliyun-inc.com")) or any(
        host == name or host.endswith("." + name)
        for name in (
            "dashscope.aliyuncs.com",
            "dashscope-intl.aliyuncs.com",
            "dashscope-us.aliyuncs.com",
        )
    ):
        return Family.DASHSCOPE
    return Family.OTHER


#: Names of models on Alibaba's gateways that neither chat nor embed text: images, video, speech,
#: ranking. This proxy lacks the routes that call them (Model Studio's model list).
_NO_CHAT: Final = re.compile(
    r"(?:qwen-image|wan[x2-9]|z-image|happyhorse|flux|stable-diffusion|cosyvoice|sambert|paraformer"
    r"|fun-asr|gummy|qwen-audio-[3-9]|speech-|multimodal-embedding|tongyi-embedding-vision"
    r"|gte-rerank|text-embedding-async)"
    r"|(?:-tts|-rerank|-vl-embedding|-realtime|-livetranslate|-filetrans|-image)(?:-|$)"
    r"|-t2[iv](?:-|$)|-i2v(?:-|$)|-r2v(?:-|$)|-voice-"
)


def can_be_called(family: Family, model: str) -> bool:
    """Whether a listed model serves chat completions or embeddings; only Alibaba's hosts list
    others."""
    return not family.is_qwen or _NO_CHAT.search(model.lower()) is None
