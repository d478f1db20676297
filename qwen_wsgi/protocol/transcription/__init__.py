"""Speech into text: OpenAI's requests into Model Studio's calls, and their answers back. Pure."""
