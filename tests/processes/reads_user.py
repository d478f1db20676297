"""Reads a socket as a worker does, in a process that gevent has patched; prints what it saw.

python -m tests.processes.reads_user once|kept [CERTIFICATE]
"""

from __future__ import annotations

# As in gunicorn.conf.py: before everything else.
from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402
import json
import os
import socket
import ssl
import sys

import gevent

from qwen_wsgi.greenlets import KeptReads, TimedReads, look_at

#: More than one TLS record and more than one read hold.
LARGE = os.urandom(50_000)


def pair(certificate: str | None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection; the second one writes."""
    ours, theirs = socket.socketpair()
    if certificate is None:
        return ours, theirs
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    accepted = gevent.spawn(server.wrap_socket, theirs, server_side=True)
    wrapped = client.wrap_socket(ours, server_hostname="localhost")
    return wrapped, accepted.get(timeout=10)


def outcome_of(reads: TimedReads, size: int = 16_384) -> str:
    """What one read gives, in words."""
    try:
        return reads.recv(size).decode("latin-1")
    except (TimeoutError, ValueError) as error:
        return type(error).__name__


def main(certificate: str | None) -> dict[str, object]:
    """Go through all that may happen to a reader."""
    ours, theirs = pair(certificate)
    reads = TimedReads(ours, 1.0)
    passed: list[bytes] = []
    seen: dict[str, object] = {"silence": outcome_of(reads)}
    theirs.sendall(b"there already")
    seen["there"] = outcome_of(reads)
    gevent.spawn_later(0.02, theirs.sendall, b"late")
    seen["late"] = outcome_of(reads)

    def passing(data: bytes) -> bool:
        if data == b"fault":
            raise ValueError
        passed.append(data)
        return data.startswith(b"pass")

    reads.passing = passing

    def write_one_by_one() -> None:
        for number, piece in enumerate((b"pass 1", b"pass 2", b"mine")):
            while len(passed) < number:
                gevent.sleep(0.01)
            theirs.sendall(piece)

    gevent.spawn_later(0.02, write_one_by_one)
    seen["mine"] = outcome_of(reads)
    gevent.spawn_later(0.02, theirs.sendall, b"fault")
    seen["fault"] = outcome_of(reads)
    seen["passed"] = [piece.decode() for piece in passed]
    gevent.spawn_later(0.15, theirs.sendall, b"pass 3")
    seen["silence of what is not passed"] = outcome_of(reads)
    reads.passing = None
    gevent.spawn_later(0.02, theirs.sendall, LARGE)
    whole = ""
    while len(whole) < len(LARGE):
        whole += reads.recv(7_000).decode("latin-1")
    seen["large"] = whole.encode("latin-1") == LARGE
    # The end without TLS's own: as a host that cuts the connection.
    gevent.spawn_later(0.02, theirs.shutdown, socket.SHUT_RDWR)
    seen["end"], seen["again"] = outcome_of(reads), outcome_of(reads)
    reads.stop()
    reads.stop()
    return seen


def kept(certificate: str | None) -> dict[str, object]:
    """Serve several exchanges, with rests between them."""
    ours, theirs = pair(certificate)
    reads, readable = KeptReads(ours, 5.0), look_at(ours)
    seen: dict[str, object] = {}
    for name, data in (("first", b"one"), ("second", b"two")):
        reads.begin(5.0)
        gevent.spawn_later(0.02, theirs.sendall, data)
        seen[name] = outcome_of(reads)
        reads.stop()
        reads.stop()
    reads.begin(5.0)
    theirs.sendall(b"at once")
    seen["before it is asked for"] = outcome_of(reads)
    reads.stop()
    reads.begin(0.1)
    seen["silence"] = outcome_of(reads)
    reads.stop()
    seen["quiet"] = bool(readable())
    theirs.sendall(b"rubbish")
    gevent.sleep(0.2)  # longer than the silence of the exchange before
    seen["spoken to"] = bool(readable())
    reads.begin(5.0)
    seen["what came meanwhile"] = outcome_of(reads)
    gevent.spawn_later(0.02, theirs.shutdown, socket.SHUT_RDWR)
    seen["end"] = outcome_of(reads)
    reads.close()
    reads.close()
    reads.stop()
    return seen


if __name__ == "__main__":
    way = {"once": main, "kept": kept}[sys.argv[1]]
    print(json.dumps(way(sys.argv[2] if len(sys.argv) > 2 else None)))
