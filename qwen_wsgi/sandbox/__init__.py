"""A Qwen look-alike on loopback: the routes and known faults of the real services.

It is a test double of the outside world. It therefore shares no code with the product (a mistake in
the product's own protocol code must not cancel itself out here) and listens on loopback only.
"""

from __future__ import annotations

from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.server import Sandbox

__all__ = ["Record", "Sandbox"]
