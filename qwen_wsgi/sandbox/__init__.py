"""A fake Qwen service on loopback, with the routes and known faults of the real ones.

It shares no code with the product, so that a mistake in the product's protocol code is not repeated
here, and it listens only on loopback.
"""

from __future__ import annotations

from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.server import Sandbox

__all__ = ["Record", "Sandbox"]
