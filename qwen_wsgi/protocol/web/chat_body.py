"""The bodies of a question to chat.qwen.ai: one that opens its chat, and one that asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def new_chat(model: str, kind: str, now: float) -> dict[str, Any]:
    """The body that opens a chat.

    Args:
        kind: such as `t2t`, `search` or `t2v`.
        now: seconds since 1970.
    """
    return {
        "title": "qwen-proxy",
        "models": [model],
        "chat_mode": "normal",
        "chat_type": kind,
        "timestamp": int(now * 1000),
    }


def completion(
    chat_id: str,
    now: float,
    new_id: Callable[[], str],
    *,
    model: str,
    kind: str,
    content: str | list[dict[str, Any]],
    files: Sequence[Mapping[str, Any]],
    features: Mapping[str, Any],
    stream: bool = True,
) -> dict[str, Any]:
    """The body that asks for the answer.

    Args:
        now: seconds since 1970.
        new_id: makes a UUID.
        files: the entries of pictures.
        features: how the model answers.
    """
    seconds = int(now)
    message = {
        "fid": new_id(),
        "parentId": None,
        "parent_id": None,
        "childrenIds": [new_id()],
        "role": "user",
        "content": content,
        "user_action": "chat",
        "files": list(files),
        "timestamp": seconds,
        "models": [model],
        "chat_type": kind,
        "sub_chat_type": kind,
        "feature_config": features,
        "extra": {"meta": {"subChatType": kind}},
    }
    return {
        "stream": stream,
        "version": "2.1",
        "incremental_output": stream,
        "chat_id": chat_id,
        "chat_mode": "normal",
        "model": model,
        "parent_id": None,
        "messages": [message],
        "timestamp": seconds,
    }
