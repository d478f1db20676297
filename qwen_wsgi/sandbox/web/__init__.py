"""The web API of chat.qwen.ai, as projects that use it describe it (mid 2026)."""
