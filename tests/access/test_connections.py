"""How many WebSockets are kept open, and their end at a stop."""

from __future__ import annotations

import pytest

from qwen_wsgi.access.connections import Connections
from qwen_wsgi.errors import ApiError


class Fake:
    """A connection that counts how often it was stopped."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1


def refusal(connections: Connections, client: str = "ada") -> ApiError:
    with pytest.raises(ApiError) as caught:
        connections.enter(Fake(), client)
    return caught.value


def test_places_are_counted_in_all_and_by_client() -> None:
    connections = Connections(3, 2)
    first, second = Fake(), Fake()
    connections.enter(first, "ada")
    connections.enter(second, "ada")

    told = refusal(connections)
    assert (told.status, told.code) == (426, "websocket_limit_reached")
    assert "2 WebSockets of one client key" in told.message

    connections.enter(Fake(), "bob")
    assert "3 WebSockets (QWEN_PROXY_WEBSOCKETS)" in refusal(connections, "eve").message

    connections.leave(first)
    connections.leave(first)
    connections.enter(Fake(), "ada")
    assert len(connections) == 3


def test_none_are_allowed() -> None:
    told = refusal(Connections(0, 2))

    assert (told.status, told.code) == (426, "websocket_not_supported")


def test_a_stop_ends_all_and_allows_no_more() -> None:
    connections = Connections(3, 2)
    one = Fake()
    connections.enter(one, "ada")

    connections.stop()

    assert one.stopped == 1
    told = refusal(connections)
    assert (told.status, told.code, told.retry_after_s) == (503, "proxy_stopping", 1)
