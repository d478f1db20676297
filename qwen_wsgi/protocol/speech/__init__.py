"""Speech: OpenAI's requests into Model Studio's native calls, and their sound back. Pure."""
