"""Where accounts come from: environment, API keys, qwen-code's settings, login files."""
