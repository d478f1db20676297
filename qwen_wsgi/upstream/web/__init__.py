"""Calls of the web API of chat.qwen.ai: temporary chats, their answers, and whose a token is."""
