"""What models can do by their names, and what hosts can be asked for."""

from __future__ import annotations

import pytest

from qwen_wsgi.capabilities import (
    ENDPOINTS,
    Capability,
    can_be_called,
    capabilities_of,
    has_route,
    is_chat_model,
    listed,
    may_have,
)
from qwen_wsgi.hosts import Family


@pytest.mark.parametrize(
    ("model", "capabilities"),
    [
        ("qwen3.7-plus", "chat"),
        ("qwen3-omni-flash", "chat"),
        ("qwen-vl-ocr", "chat"),
        ("qwen-audio-turbo", "chat"),
        ("deepseek-v4-pro", "chat"),
        ("coder-model", "chat"),
        ("text-embedding-v4", "embedding"),
        ("qwen3-vl-embedding", "embedding"),
        ("multimodal-embedding-v1", "embedding"),
        ("tongyi-embedding-vision-plus", "embedding"),
        ("qwen3-rerank", "rerank"),
        ("qwen3.7-text-rerank", "rerank"),
        ("gte-rerank-v2", "rerank"),
        ("qwen-image-3.0-pro", "image image_edit"),
        ("qwen-image-2.0-2026-03-03", "image image_edit"),
        ("qwen-image-2.1-turbo", "image image_edit"),
        ("qwen-image-max", "image"),
        ("qwen-image", "image"),
        ("qwen-image-edit-plus", "image_edit"),
        ("z-image-turbo", "image"),
        ("wan2.7-image-pro", "image image_edit"),
        ("wan2.6-image", "image_edit"),
        ("wan2.6-t2i", "image"),
        ("wan2.5-i2i-preview", "image_edit"),
        ("wanx2.1-t2i-turbo", "image"),
        ("wan3.0-video-prime", "video"),
        ("wan2.7-i2v-2026-04-25", "video"),
        ("wan2.2-kf2v-flash", "video"),
        ("happyhorse-1.1-r2v", "video"),
        ("qwen3-asr-flash", "transcription"),
        ("qwen3-asr-flash-filetrans", "transcription"),
        ("qwen-audio-3.1-asr-flash", "transcription"),
        ("fun-asr", "transcription"),
        ("paraformer-v2", "transcription"),
        ("qwen3-tts-flash", "speech"),
        ("qwen-audio-3.1-tts-plus", "speech"),
        ("cosyvoice-v3-flash", "speech"),
        ("Qwen/Qwen3-TTS-Flash", "speech"),
        ("paraformer-realtime-v2", ""),
        ("qwen3.8-omni-flash-realtime", ""),
        ("qwen3-livetranslate-flash", ""),
        ("qwen3-tts-flash-realtime", ""),
        ("qwen-audio-3.1-asr-flash-message", ""),
        ("stable-diffusion-3.5-large", ""),
        ("text-embedding-async-v2", ""),
    ],
)
def test_what_a_model_can_do_by_its_name(model: str, capabilities: str) -> None:
    assert " ".join(capabilities_of(model)) == capabilities
    assert can_be_called(Family.DASHSCOPE, model) is bool(capabilities)
    assert can_be_called(Family.OTHER, model)


def test_plans_and_the_portal_have_fewer_routes() -> None:
    assert can_be_called(Family.TOKEN_PLAN, "wan2.7-image")
    assert not can_be_called(Family.TOKEN_PLAN, "wan3.0-video")
    assert not can_be_called(Family.CODING_PLAN, "wan2.7-image")
    assert not can_be_called(Family.PORTAL, "qwen3-tts-flash")
    assert not may_have(Family.CODING_PLAN, "qwen-image-3.0")
    assert may_have(Family.DASHSCOPE, "qwen-image-4.0")


def test_a_list_says_what_a_model_can_be_called_for() -> None:
    assert listed(Family.DASHSCOPE, "qwen-image-3.0") == ["image", "image_edit"]
    assert listed(Family.OTHER, "bge-m3") == ["embedding"]
    assert listed(Family.OTHER, "llama-4") == ["chat"]
    assert listed(Family.OTHER, "whisper-1") == []


def test_other_hosts_are_believed_for_chats_and_embeddings_alone() -> None:
    assert has_route(Family.OTHER, Capability.CHAT)
    assert has_route(Family.OTHER, Capability.EMBEDDING)
    assert not has_route(Family.OTHER, Capability.IMAGE)


def test_each_capability_has_an_endpoint() -> None:
    assert set(ENDPOINTS) == set(Capability)


@pytest.mark.parametrize(
    ("model", "chats"),
    [
        ("qwen3.7-plus", True),
        ("qwen3-vl-plus", True),
        ("my-model", True),
        ("text-embedding-v4", False),
        ("GTE-Rerank", False),
        ("bge-m3", False),
        ("whisper-1", False),
        ("qwen3-omni-flash", False),
        ("qwen-mt-plus", False),
        ("z-image-turbo", False),
        ("happyhorse-1", False),
    ],
)
def test_models_that_chat_in_text_by_their_names(model: str, chats: bool) -> None:
    assert is_chat_model(model) is chats
