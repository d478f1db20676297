"""Heads of requests that gunicorn has read before, so that the same bytes are not read again.

A client that keeps a connection sends the same head with each request, but for the length of the
body. What gunicorn reads in a head depends on its bytes, on the peer's address (a proxy may be
trusted), and on settings of the worker: so what it has read once holds for the same bytes again. A
head that differs in a single byte, other than the digits of its length, is gunicorn's to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

#: So many are remembered, and none that is longer.
_MOST: Final = 128
_LONGEST_BYTES: Final = 4096

#: Different ones that were seen once.
_MOST_SEEN: Final = 1024

#: The line with the length of the body, whose value alone may differ. Of several lines that match,
#: the first: gunicorn refuses such a head, and what it refuses is never remembered.
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,12})\r\n")

_END: Final = b"\r\n\r\n"

#: What belongs to a single message, of what gunicorn keeps of it.
_OF_A_MESSAGE: Final = frozenset(
    {"body", "headers", "peer_addr", "remote_addr", "trailers", "unreader"}
)

#: The bytes before and after the digits of the length, and the peer's address.
Key = tuple[bytes, bytes, str]


class Came(NamedTuple):
    """A head as it came.

    Attributes:
        length: the digits of the body's length.
        rest: what came behind it.
    """

    key: Key
    length: bytes
    rest: bytes


class Head(NamedTuple):
    """What gunicorn has read in a head.

    Attributes:
        request: attributes of its request, without those that belong to a single message.
        headers: names and values, with the length of another body.
        length_at: the place of that length in them.
        environ: what the head adds to the WSGI environment, with the same length.
    """

    request: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...]
    length_at: int
    environ: Mapping[str, Any]


def came(data: bytes, host: str) -> Came | None:
    """The head at the beginning of what was read from a connection; None if it is not all there,
    or one that is not worth remembering: without a body of known length, or too long.

    Args:
        host: the peer's address; "" for a socket that is a file.
    """
    if not data.startswith(b"POST /"):
        return None
    end = data.find(_END, 0, _LONGEST_BYTES) + len(_END)
    if end < len(_END):
        return None
    found = _LENGTH.search(data, 0, end)
    if found is None:
        return None
    first, last = found.span(1)
    return Came((data[:first], data[last:end], host), data[first:last], data[end:])


class Heads:
    """The heads that a worker remembers. One is remembered when it comes for the second time:
    some clients send another id with each request."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._heads: dict[Key, Head] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, key: Key) -> Head | None:
        """What gunicorn has read in it; None if it was not remembered."""
        return self._heads.get(key)

    def wants(self, key: Key) -> bool:
        """Whether this one is to be remembered, which was not: it came before."""
        if hash(key) in self._seen:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(hash(key))
        return False

    def keep(self, key: Key, request: Any, environ: Mapping[str, Any]) -> None:
        """Remember what gunicorn has read.

        Args:
            request: gunicorn's.
            environ: what its head adds to the WSGI environment.
        """
        headers = tuple(request.headers)
        places = [at for at, (name, _) in enumerate(headers) if name == "CONTENT-LENGTH"]
        if len(places) != 1 or environ.get("CONTENT_LENGTH") != headers[places[0]][1]:
            return  # a trusted proxy may say it in other ways as well
        if len(self._heads) >= _MOST:
            self._heads.clear()
        attributes = {k: v for k, v in vars(request).items() if k not in _OF_A_MESSAGE}
        self._heads[key] = Head(attributes, headers, places[0], environ)
