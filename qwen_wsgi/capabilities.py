"""What a model can do, as its name shows, and which endpoint calls it.

No list of models says it: Model Studio's has ids only. From the vendor's model pages of 2026.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Mapping
from typing import Final

from qwen_wsgi.hosts import Family


class Capability(enum.StrEnum):
    """One kind of call; the values are those of `GET /v1/models`."""

    CHAT = "chat"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    IMAGE = "image"
    IMAGE_EDIT = "image_edit"
    VIDEO = "video"
    TRANSCRIPTION = "transcription"
    SPEECH = "speech"


#: What the model does, and where it is called, for messages.
ENDPOINTS: Final[Mapping[Capability, tuple[str, str]]] = {
    Capability.CHAT: ("chats", "POST /v1/chat/completions"),
    Capability.EMBEDDING: ("makes embeddings", "POST /v1/embeddings"),
    Capability.RERANK: ("ranks documents", "POST /v1/rerank"),
    Capability.IMAGE: ("makes pictures", "POST /v1/images/generations"),
    Capability.IMAGE_EDIT: ("edits pictures", "POST /v1/images/edits"),
    Capability.VIDEO: ("makes videos", "POST /v1/videos"),
    Capability.TRANSCRIPTION: ("transcribes speech", "POST /v1/audio/transcriptions"),
    Capability.SPEECH: ("speaks text", "POST /v1/audio/speech"),
}

_C: Final = Capability

#: The first row that matches a name counts. An empty one: no endpoint of this proxy calls it.
_RULES: Final = tuple(
    (re.compile(pattern), tuple(capabilities))
    for pattern, *capabilities in (
        # WebSockets, and models of others with request forms of their own.
        (r"-realtime|livetranslate|-voice-|^(?:flux|stable-diffusion|gummy|sambert|speech-)",),
        (r"^text-embedding-async|-asr-flash-message",),
        (r"rerank", _C.RERANK),
        (r"embedding", _C.EMBEDDING),
        (r"^qwen-image-edit|^wan2\.6-image|^wan2\.5-i2i", _C.IMAGE_EDIT),
        (r"^qwen-image-[23]\.\d|^wan2\.7-image", _C.IMAGE, _C.IMAGE_EDIT),
        (r"^qwen-image|^z-image|^wan[x\d].*-t2i", _C.IMAGE),
        (r"^wan\d.*-(?:video|t2v|i2v|r2v|kf2v|s2v)(?:-|$)|^wanx.*-[ti]2v|^happyhorse", _C.VIDEO),
        (r"^wan[x\d]",),
        (r"-tts(?:-|$)|^cosyvoice", _C.SPEECH),
        (r"-asr(?:-|$)|^paraformer", _C.TRANSCRIPTION),
        (r"-image(?:-|$)|-filetrans(?:-|$)|^qwen-audio-[3-9]",),
        (r"", _C.CHAT),
    )
)

#: What hosts of every family are asked for. A tuple: the hash of an Enum is a call.
EVERYWHERE: Final = (_C.CHAT, _C.EMBEDDING)
_ALL: Final = frozenset(Capability)

_WEB_VARIANTS: Final = (("-image", (_C.IMAGE, _C.IMAGE_EDIT)), ("-video", (_C.VIDEO,)))

#: What the routes of a kind of host can be asked for. Pictures on the Token Plan's hosts were seen
#: (August 2026), speech is there by WebSocket only; the Coding Plan and the portal only chat.
_OF_FAMILY: Final[Mapping[Family, frozenset[Capability]]] = {
    Family.DASHSCOPE: _ALL,
    Family.SANDBOX: _ALL,
    Family.TOKEN_PLAN: frozenset(EVERYWHERE) | {_C.IMAGE, _C.IMAGE_EDIT},
    Family.CODING_PLAN: frozenset(EVERYWHERE),
    Family.PORTAL: frozenset(EVERYWHERE),
    Family.WEB: frozenset({_C.CHAT, _C.IMAGE, _C.IMAGE_EDIT, _C.VIDEO}),
    # They are believed: an OpenAI-compatible server is asked for what OpenAI's routes have.
    Family.OTHER: frozenset(EVERYWHERE),
}


@functools.lru_cache(maxsize=1024)
def capabilities_of(model: str) -> tuple[Capability, ...]:
    """What a model of Alibaba's gateways can do; empty if no endpoint of this proxy calls it.

    A vendor's prefix (`Qwen/…`) and letter case do not matter.
    """
    name = model.rsplit("/", 1)[-1].lower()
    return next(found for pattern, found in _RULES if pattern.search(name))


def capabilities_at(family: Family, model: str) -> tuple[Capability, ...]:
    """What a model can do at a host of the family: the web API has variants that make something
    else than their model, by the end of the name."""
    if family is Family.WEB:
        return next((can for end, can in _WEB_VARIANTS if model.endswith(end)), (_C.CHAT,))
    return capabilities_of(model)


def has_route(family: Family, capability: Capability) -> bool:
    """Whether hosts of a family have a route for such calls."""
    return capability in _OF_FAMILY[family]


def can_be_called(family: Family, model: str) -> bool:
    """Whether an endpoint of this proxy calls the model at a host of the family; other hosts than
    Alibaba's are believed."""
    return not family.is_qwen or not _OF_FAMILY[family].isdisjoint(capabilities_at(family, model))


def listed(family: Family, model: str) -> list[str]:
    """What a model at a host of the family can be called for, for a list of models."""
    if family.is_qwen:
        return [each.value for each in capabilities_at(family, model) if has_route(family, each)]
    if _EMBEDS.search(model.lower()):
        return [Capability.EMBEDDING.value]
    return [] if _NEITHER.search(model.lower()) else [Capability.CHAT.value]


#: Names of models on other hosts: those that embed, and those that neither embed nor chat.
_EMBEDS: Final = re.compile(r"embed|^bge|^gte-|^e5-")
_NEITHER: Final = re.compile(
    r"rerank|dall-e|gpt-image|stable-diffusion|flux|whisper|tts|moderation|^sora"
)

#: Names of models, on any host, that do something else than chat in text.
_NOT_CHAT: Final = re.compile(
    r"embed|rerank|image|wanx|wan\d|video|tts|asr|audio|speech|voice|realtime|livetranslate"
    r"|omni|ocr|-mt-|^bge|whisper|moderation"
)

#: How the names of models on Alibaba's gateways begin, theirs and those of others that they serve.
_OF_THE_HOSTS: Final = re.compile(
    r"(?:qwen|qwq|qvq|wan[x\d]|deepseek|glm-|kimi|minimax|text-embedding|multimodal-embedding|tongyi"
    r"|gte-|coder-model|vision-model|z-image|happyhorse|cosyvoice|paraformer|fun-asr)"
)


def may_have(family: Family, model: str) -> bool:
    """Whether a host may have a model that it does not list and that this proxy can call.

    The vendor's lists miss some (August 2026: deepseek-v4-pro-0813 with a Token Plan).
    """
    known = family.is_qwen and _OF_THE_HOSTS.match(model.lower()) is not None
    if family is Family.WEB and capabilities_at(family, model) != (_C.CHAT,):
        return False  # its variants are all in its list
    return known and can_be_called(family, model)


def is_chat_model(model: str) -> bool:
    """Whether a model chats in text, as far as its name shows: for choosing one of a list."""
    name = model.lower()
    return _NOT_CHAT.search(name) is None and capabilities_of(model) == (Capability.CHAT,)
