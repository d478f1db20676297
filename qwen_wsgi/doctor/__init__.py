"""`qwen-proxy doctor`: what is wrong with this installation, why, and what to do.

Each check is a module with a function `check` that yields findings. What it needs of the machine is
passed in as a `Machine`. The checks only read; but a real call may refresh a login, as any call.
"""

from __future__ import annotations
