"""Who answers while a plan's window is spent (QWEN_PROXY_PLAN_FALLBACK)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qwen_wsgi.settings import Settings


class Fallbacks:
    """The accounts that the operator lists.

    Attributes:
        places: by the account's name: its place, from 1.
        models: by the account's name: the model that it is asked for in any case, or "".
    """

    def __init__(self, settings: Settings) -> None:
        named = [word.partition(":") for word in settings.plan_fallback]
        self.places: Mapping[str, int] = MappingProxyType(
            {name: place for place, (name, _, _) in enumerate(named, 1)}
        )
        self.models: Mapping[str, str] = MappingProxyType({name: m for name, _, m in named})

    def __bool__(self) -> bool:
        return bool(self.places)
