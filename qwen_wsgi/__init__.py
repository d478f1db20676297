"""qwen-proxy: Qwen models for every OpenAI or Anthropic client, by qwen-code's login or API keys.

Importing the package does nothing: no file is opened, no thread started, no environment read.
"""

from __future__ import annotations

#: The release that is being made, or that was made last.
RELEASE = "0.1.0"

__all__ = ["RELEASE", "__version__"]

try:
    # Written by the build and by `make`, from git: install/version.py.
    from qwen_wsgi._version import version as __version__
except ImportError:
    __version__ = RELEASE
