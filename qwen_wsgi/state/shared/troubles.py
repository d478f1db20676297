"""What clients are told of what this box does not have, while it cannot ask Redis for it."""

from __future__ import annotations

import logging

from qwen_wsgi.errors import ApiError
from qwen_wsgi.state.redis.connection import SharedStoreAway
from qwen_wsgi.state.redis.values import Unreadable

log = logging.getLogger(__name__)

#: By then a Redis that was restarted is found again. Seconds.
_AGAIN_S = 2


def unknown_here(what: str, error: SharedStoreAway | Unreadable) -> ApiError:
    """The 503 for something that is perhaps on another box.

    Args:
        what: `response`, `file`, `batch`.
    """
    if isinstance(error, Unreadable):
        log.error("a %s in Redis cannot be read: %s", what, error)
        return ApiError(
            f"The {what} was stored by another box of this proxy, and this box cannot read it: its "
            "log says why.",
            status=503,
            code="shared_store_unreadable",
            should_retry=False,
        )
    return ApiError(
        f"This box of the proxy does not have the {what}, and it cannot ask the others now: the "
        "Redis that they share does not answer. Please try again in a moment; if this goes on, "
        "tell the operator of this proxy.",
        status=503,
        code="shared_store_away",
        retry_after_s=_AGAIN_S,
    )
