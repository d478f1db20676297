"""The command `tools`: what the server runs for models."""
