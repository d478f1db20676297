"""Addresses in gunicorn's notation."""

from __future__ import annotations

import pytest

from qwen_wsgi.net import parse


@pytest.mark.parametrize(
    ("text", "here", "lan"),
    [
        ("127.0.0.1:8080", "127.0.0.1", False),
        ("[::1]:8080", "::1", False),
        ("localhost:8080", "localhost", False),
        ("0.0.0.0:8080", "127.0.0.1", True),
        ("[::]:8080", "::1", True),
        (":8080", "127.0.0.1", True),
        ("192.168.1.5:80", "192.168.1.5", True),
    ],
)
def test_where_it_is_reached_and_from_where(text: str, here: str, lan: bool) -> None:
    found = parse(text)

    assert (found.here, found.open_to_lan) == (here, lan)
    assert str(found) == text


def test_a_unix_socket_is_open_to_no_lan() -> None:
    found = parse("unix:/run/x.sock")

    assert (found.path, found.open_to_lan, str(found)) == ("/run/x.sock", False, "unix:/run/x.sock")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", "127.0.0.1:80", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "localhost:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("192.168.1.5:80", "127.0.0.1:80", False),
    ],
)
def test_whether_a_connection_gets_there(one: str, other: str, same: bool) -> None:
    assert parse(one).is_same(parse(other)) is same


@pytest.mark.parametrize("text", ["", "nonsense", "host:", "host:http", "host:８0"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="neither unix:PATH nor HOST:PORT"):
        parse(text)
