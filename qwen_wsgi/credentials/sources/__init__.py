"""Finds accounts in the environment, qwen-code's settings and login files."""
