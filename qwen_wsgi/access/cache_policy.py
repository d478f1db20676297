"""Whether a call may be answered from the response cache, and its answer kept there. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple


class CachePolicy(NamedTuple):
    """What a call may do with the response cache.

    Attributes:
        owner: the id of the client: nobody else gets what is kept for it.
        ttl_s: how old an answer may be.
        reads: an answer that is kept may be taken.
        keeps: the answer may be kept.
    """

    owner: str
    ttl_s: float
    reads: bool = True
    keeps: bool = True


#: Directives of a request (RFC 9111, 5.2.1) by which a client goes past what is kept.
_PAST: Final = frozenset({"no-cache", "max-age=0"})


def policy_of(owner: str, ttl_s: float, cache_control: str) -> CachePolicy | None:
    """The policy of a call; None if it has nothing to do with the cache.

    Args:
        ttl_s: what the client's key or the server says; 0 is off.
        cache_control: the client's header of this name.
    """
    if not ttl_s:
        return None
    if not cache_control:
        return CachePolicy(owner, ttl_s)
    directives = {each.strip().lower() for each in cache_control.split(",")}
    policy = CachePolicy(
        owner, ttl_s, reads=_PAST.isdisjoint(directives), keeps="no-store" not in directives
    )
    return policy if policy.reads or policy.keeps else None
