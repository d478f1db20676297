"""What the soak's own clients do when the machine has no time for them."""

from __future__ import annotations

import asyncio
import socket

from tests.soak.clients import get_json


def test_the_sandbox_does_not_wait_for_a_control_call_once_it_is_connected() -> None:
    """It closes silent connections, which counted as calls that the proxy had closed."""

    async def ask(server: socket.socket) -> None:
        asking = asyncio.create_task(get_json(server.getsockname()[1], "/state"))
        await asyncio.sleep(0)  # one turn of the loop, and the next one may be seconds later
        server.settimeout(5)
        end, _ = server.accept()
        with end:
            end.settimeout(5)
            assert end.recv(1000).endswith(b"\r\n\r\n")
            end.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"ok": true}')
        assert await asking == {"ok": True}

    with socket.create_server(("127.0.0.1", 0)) as server:
        asyncio.run(ask(server))
