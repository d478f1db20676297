"""MCP servers at addresses of clients, with a real server over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from qwen_wsgi.tool_runner.results import Result
from qwen_wsgi.tool_runner.servers import foreign as module
from qwen_wsgi.tool_runner.servers.foreign import ForeignServers
from qwen_wsgi.tool_runner.servers.foreign_hosts import Failed, Foreign, NotAllowed
from tests.kit import mcp_http
from tests.kit.mcp_http import TOKEN, McpHttp

NAMES = {"mcp.example": "127.0.0.1", "inner.example": "10.0.0.1", "link.example": "169.254.169.254"}


@pytest.fixture(scope="module")
def server() -> Iterator[McpHttp]:
    with mcp_http.serving() as made:
        yield made


async def resolve(host: str, port: int) -> Sequence[str]:
    if host == "127.0.0.1":
        return [host]
    if host not in NAMES:
        raise OSError("unknown")
    return [NAMES[host]]


def run(work: Callable[[ForeignServers], Awaitable[Any]], *hosts: str) -> Any:
    async def whole() -> Any:
        return await work(ForeignServers(hosts, timeout_s=5, output_bytes=10_000, resolve=resolve))

    return asyncio.run(whole())


def listed(server: McpHttp, path: str = "/mcp", **headers: str) -> Any:
    address = Foreign(server.url(path), headers)
    return run(lambda them: them.listed(address), f"127.0.0.1:{server.server_port}")


def called(server: McpHttp, path: str = "/mcp", seconds: float = 5) -> Result:
    address = Foreign(server.url(path), {})
    found: Result = run(
        lambda them: them.call(address, "weather", {"city": "Bonn"}, seconds=seconds),
        f"127.0.0.1:{server.server_port}",
    )
    return found


def test_it_is_asked_with_the_clients_headers_and_nothing_is_kept(server: McpHttp) -> None:
    server.heard.clear()

    found = listed(server, "/closed?key=k", Authorization=TOKEN, **{"X-Team": "a"})

    assert list(found) == ["weather"]
    assert {path for _, path, _ in server.heard} == {"/closed?key=k"}
    assert {headers["Authorization"] for _, _, headers in server.heard} == {TOKEN}
    assert {headers["X-Team"] for _, _, headers in server.heard} == {"a"}
    assert {headers["Host"] for _, _, headers in server.heard} == {
        f"127.0.0.1:{server.server_port}"
    }
    assert "DELETE" in [method for method, _, _ in server.heard]


def test_a_call(server: McpHttp) -> None:
    assert called(server) == Result("weather says: sun over Bonn")
    assert called(server, "/near").text == "weather says: sun over Bonn"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/closed", "HTTP 401: it wants another authorization"),
        ("/packed", "it packs its answers"),
        ("/large", "more than 16 MiB"),
    ],
)
def test_a_server_that_fails_says_how(server: McpHttp, path: str, told: str) -> None:
    with pytest.raises(Failed) as caught:
        listed(server, path)

    assert told in str(caught.value)
    result = called(server, path)
    assert result.is_error
    assert told in result.text


def test_an_error_that_a_server_tells_is_told_in_short(server: McpHttp) -> None:
    with pytest.raises(Failed, match=r"^127\.0\.0\.1: it refuses: not today") as caught:
        listed(server, "/refuses")

    assert len(str(caught.value)) < 600
    assert called(server, "/refuses").text.startswith("127.0.0.1: it refuses: not today")


def test_a_server_that_is_slow_is_given_up(
    server: McpHttp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIST_S", 0.3)

    with pytest.raises(Failed, match=r"did not answer within 0\.3 seconds"):
        listed(server, "/slow")
    assert "0.3 seconds" in called(server, "/slow", 0.3).text


def test_a_redirect_elsewhere_is_not_followed(server: McpHttp) -> None:
    with mcp_http.serving() as other:
        server.elsewhere = other.url()

        with pytest.raises(Failed):
            listed(server, "/moved", Authorization=TOKEN)

        assert other.heard == []


@pytest.mark.parametrize(
    ("host", "hosts", "told"),
    [
        ("other.example", ["mcp.example"], "QWEN_PROXY_TOOL_HOSTS"),
        ("mcp.example", ["mcp.example"], "its address is this machine"),
        ("mcp.example", ["*.example"], "its address is this machine"),
        ("inner.example", ["*.example"], "its address is no public address"),
        ("link.example", ["link.example"], "its address is of this machine's own link"),
    ],
)
def test_addresses_that_are_not_connected_to(host: str, hosts: list[str], told: str) -> None:
    """A name must not lead to this machine, whoever owns it."""
    address = Foreign(f"https://{host}/mcp", {})

    with pytest.raises(NotAllowed) as caught:
        run(lambda them: them.listed(address), *hosts)

    assert told in str(caught.value)
    result = run(lambda them: them.call(address, "x", {}, seconds=5), *hosts)
    assert (result.is_error, told in result.text) == (True, True)


def test_a_host_without_an_address() -> None:
    with pytest.raises(Failed, match=r"no address of gone\.example is known"):
        run(lambda them: them.listed(Foreign("https://gone.example", {})), "gone.example")


def test_a_name_with_other_letters_is_one_name_in_both_forms() -> None:
    """What connects says bücher.example, and what allows it xn--bcher-kva.example."""
    host = "xn--bcher-kva.example"

    with pytest.raises(Failed, match=f"no address of {host} is known"):
        run(lambda them: them.listed(Foreign(f"https://{host}/mcp", {})), host)


def test_addresses_and_headers_are_in_no_representation() -> None:
    shown = repr(Foreign("https://mcp.example/?key=hidden", {"Authorization": "hidden"}))

    assert "hidden" not in shown
