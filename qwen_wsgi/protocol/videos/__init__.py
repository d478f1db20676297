"""Videos: OpenAI's requests into Model Studio's tasks, and what tasks tell back. Pure."""
