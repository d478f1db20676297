"""Adapts a chat request to a Qwen host; everything the host accepts stays unchanged."""

from __future__ import annotations

from qwen_wsgi.upstream.adapt.draft import Adapted, Options, Target
from qwen_wsgi.upstream.adapt.rules import adapt, leaves_alone

__all__ = ["Adapted", "Options", "Target", "adapt", "leaves_alone"]
