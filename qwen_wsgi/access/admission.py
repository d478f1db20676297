"""How many calls one worker serves at a time."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_wsgi.errors import Overloaded


@dataclass
class Admission:
    """Counts the calls in flight in this worker, and says no above the limit.

    gunicorn would let clients queue in silence instead. Not locked: greenlets switch at I/O only.
    """

    limit: int
    in_flight: int = 0
    #: Set while the worker stops: /health then says that it takes no more.
    draining: bool = False

    def enter(self) -> None:
        """Take a place.

        Raises:
            Overloaded: there is none.
        """
        if self.in_flight >= self.limit:
            raise Overloaded(
                f"The proxy is serving {self.in_flight} calls, which is its limit "
                "(QWEN_PROXY_MAX_IN_FLIGHT). Please try again shortly.",
                type="overloaded_error",
                code="overloaded",
                retry_after_s=1,
            )
        self.in_flight += 1

    def leave(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
