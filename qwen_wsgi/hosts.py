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


#: Names of models on Alibaba's gateways that neither chat nor embed text: pictures, films, speech,
#: ranking. They are called by routes that this proxy does not have (Model Studio's model list).
_UNROUTED: Final = re.compile(
    r"(?:qwen-image|wan[x2-9]|z-image|happyhorse|flux|stable-diffusion|cosyvoice|sambert|paraformer"
    r"|fun-asr|gummy|qwen-audio-[3-9]|speech-|multimodal-embedding|tongyi-embedding-vision"
    r"|gte-rerank|text-embedding-async)"
    r"|(?:-tts|-rerank|-vl-embedding|-realtime|-livetranslate|-filetrans|-image)(?:-|$)"
    r"|-t2[iv](?:-|$)|-i2v(?:-|$)|-r2v(?:-|$)|-voice-"
)


#: Names of models, on any host, that do something else than chat in text.
_NOT_CHAT: Final = re.compile(
    r"embed|rerank|image|wanx|wan\d|video|tts|asr|audio|speech|voice|realtime|livetranslate"
    r"|omni|ocr|-mt-|^bge|whisper|moderation"
)


def can_be_called(family: Family, model: str) -> bool:
    """Whether a model that a host lists is one for chat completions or embeddings; other hosts than
    Alibaba's are believed."""
    return not family.is_qwen or _UNROUTED.search(model.lower()) is None


def is_chat_model(model: str) -> bool:
    """Whether a model chats in text, as far as its name shows: for choosing one of a list."""
    name = model.lower()
    return _NOT_CHAT.search(name) is None and _UNROUTED.search(name) is None
