"""qwen-proxy: Qwen models for every OpenAI or Anthropic client, by qwen-code's login or API keys.

Importing the package does nothing: no file is opened, no thread started, no environment read.
"""

__version__ = "0.1.0"
