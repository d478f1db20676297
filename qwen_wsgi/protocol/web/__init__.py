"""The web API of chat.qwen.ai: its tokens, requests, events, models and errors. Pure."""
