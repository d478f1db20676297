"""`qwen-proxy doctor`: what is wrong with this installation, why, and what to do.

Each check is a module with a function `check` that is given what it needs and tells findings. What
they need of the machine comes in as a `Machine`. They look, and change nothing; but a real call may
have a login renewed, as any call.
"""

from __future__ import annotations
