"""Pictures: OpenAI's requests into Model Studio's native calls, and their answers back. Pure."""
