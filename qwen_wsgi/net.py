"""Where a server listens: an address in gunicorn's notation, taken apart."""

from __future__ import annotations

from typing import Final, NamedTuple

from qwen_wsgi.hosts import is_loopback

#: Hosts that stand for every interface, and this machine's own name for each.
_EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Address(NamedTuple):
    """A unix socket's path, or host and port."""

    path: str
    host: str
    port: int

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def here(self) -> str:
        """The host under which this machine reaches it."""
        return _EVERYWHERE.get(self.host, self.host)

    @property
    def open_to_lan(self) -> bool:
        """Whether other machines reach it directly."""
        return not self.path and not is_loopback(self.host)

    def is_same(self, other: Address) -> bool:
        """Whether a connection from this machine to `other` gets here."""
        if self.path or other.path:
            return self.path == other.path
        here = is_loopback(self.here) and is_loopback(other.here)
        return self.port == other.port and (here or self.here == other.here)


def parse(text: str) -> Address:
    """Read `unix:PATH` or `HOST:PORT`.

    Raises:
        ValueError: it is neither.
    """
    if text.startswith("unix:"):
        return Address(text.removeprefix("unix:"), "", 0)
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{text!r} is neither unix:PATH nor HOST:PORT")
    return Address("", host.strip("[]"), int(port))
