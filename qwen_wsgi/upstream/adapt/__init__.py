"""What Qwen's hosts need changed in a chat request; everything else stays to the letter."""

from __future__ import annotations

from qwen_wsgi.upstream.adapt.draft import Adapted, Options, Target
from qwen_wsgi.upstream.adapt.rules import adapt

__all__ = ["Adapted", "Options", "Target", "adapt"]
