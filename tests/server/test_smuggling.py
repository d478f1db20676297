"""Requests whose end two servers could see at two places: refused, and the connection closed.

Each has a second request hidden behind the first. Whoever reads the ambiguous part the other way
would answer it, for whoever shares the connection.
"""

from __future__ import annotations

import socket

import pytest

from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.smuggling import FORMS, request

pytestmark = pytest.mark.server


@pytest.mark.parametrize("name", FORMS)
def test_a_hidden_request_is_not_answered(proxy: Proxy, name: str) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(request(name, CLIENT_KEY))
        got = b""
        try:
            while data := connection.recv(65536):
                got += data
        except ConnectionResetError:
            pass

    assert got.count(b"HTTP/1.1 ") == 1, got
    assert got.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert b"connection: close" in got.lower()
    assert b"hidden" not in got
