"""Requests whose end two servers could see at two places, with another one hidden behind it."""

from __future__ import annotations

HIDDEN = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = "0\r\n\r\n" + HIDDEN

#: Framing headers of the first request, and what follows its head.
FORMS: dict[str, tuple[str, str]] = {
    "both framings": ("Content-Length: 5\r\nTransfer-Encoding: chunked", CHUNKED),
    "both framings, other order": ("Transfer-Encoding: chunked\r\nContent-Length: 5", CHUNKED),
    "two lengths": ("Content-Length: 0\r\nContent-Length: 40", HIDDEN),
    "a list of lengths": ("Content-Length: 0, 40", HIDDEN),
    "a length with a sign": ("Content-Length: +0", HIDDEN),
    "a negative length": ("Content-Length: -1", HIDDEN),
    "a length in hexadecimal": ("Content-Length: 0x0", HIDDEN),
    "a length with an underscore": ("Content-Length: 0_0", HIDDEN),
    "a length with a space inside": ("Content-Length: 0 0", HIDDEN),
    "a space before the colon": ("Content-Length : 0\r\nContent-Length: 40", HIDDEN),
    "a folded header": ("X: a\r\n Content-Length: 40", HIDDEN),
    "an unknown coding": ("Transfer-Encoding: xchunked", CHUNKED),
    "chunked twice": ("Transfer-Encoding: chunked, chunked", CHUNKED),
    "chunked and not last": ("Transfer-Encoding: chunked, gzip", CHUNKED),
    "a tab before chunked": ("Transfer-Encoding:\tchunked\r\nContent-Length: 5", CHUNKED),
    "a control before chunked": ("Transfer-Encoding: \x0bchunked", CHUNKED),
    "a null in the coding": ("Transfer-Encoding: chunked\x00", CHUNKED),
    "identity and a length": ("Transfer-Encoding: identity\r\nContent-Length: 5", CHUNKED),
    "a bare line feed in the head": ("X: a\nContent-Length: 40", HIDDEN),
    "a chunk size with a sign": ("Transfer-Encoding: chunked", "+0\r\n\r\n" + HIDDEN),
    "a chunk size with 0x": ("Transfer-Encoding: chunked", "0x0\r\n\r\n" + HIDDEN),
    "a chunk that ends with a bare line feed": (
        "Transfer-Encoding: chunked",
        "1\na\n0\n\n" + HIDDEN,
    ),
    "a chunk longer than it says": ("Transfer-Encoding: chunked", "1\r\nab\r\n0\r\n\r\n" + HIDDEN),
}


def request(name: str, key: str) -> bytes:
    """Such a request, and the hidden one."""
    framing, rest = FORMS[name]
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\n{framing}\r\n\r\n"
    )
    return (head + rest).encode("latin-1")
