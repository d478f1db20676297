"""The turns of a response as messages of the next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.responses.conversation import Conversation
from qwen_wsgi.protocol.responses.tools import Names


def messages_of(items: Iterable[Mapping[str, Any]], names: Names) -> list[dict[str, Any]]:
    """The output items of a turn as messages, as they would be if the client sent them back."""
    conversation = Conversation(names, Changes())
    for index, item in enumerate(items):
        conversation.add(item, f"output[{index}].")
    return conversation.messages()
