"""Which addresses of clients may be connected to."""

from __future__ import annotations

import pytest

from qwen_wsgi.tool_runner.servers.foreign_hosts import NotAllowed, Target, target_of

HOSTS = (
    *("mcp.example", "*.below.example", "box.lan:8080", "*.wide.example:8443"),
    *("127.0.0.1:8931", "localhost:8931"),
)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://mcp.example/mcp?k=1#x", Target("https", "mcp.example", 443, True, False)),
        ("https://MCP.example.:443", Target("https", "mcp.example", 443, True, False)),
        ("https://a.b.below.example/", Target("https", "a.b.below.example", 443, False, False)),
        ("https://x.wide.example:8443", Target("https", "x.wide.example", 8443, False, False)),
        ("http://box.lan:8080/sse", Target("http", "box.lan", 8080, True, False)),
        ("https://box.lan:8080/sse", Target("https", "box.lan", 8080, True, False)),
        ("http://127.0.0.1:8931/mcp", Target("http", "127.0.0.1", 8931, True, True)),
        ("http://localhost:8931/mcp", Target("http", "localhost", 8931, True, True)),
    ],
)
def test_what_is_allowed(url: str, target: Target) -> None:
    assert target_of(url, HOSTS) == target


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://mcp.example.evil/", "QWEN_PROXY_TOOL_HOSTS"),
        ("https://mcp.example:8443/", "does not connect to mcp.example:8443"),
        ("https://below.example/", "Ask the operator"),
        ("https://x.wide.example/", "does not connect to x.wide.example:"),
        ("http://mcp.example/", "does not connect to mcp.example:80"),
        ("http://mcp.example:443/", "must begin with https://"),
        ("http://x.wide.example:8443/", "must begin with https://"),
        ("https://box.lan/", "does not connect to box.lan:"),
        ("http://127.0.0.1:8932/", "does not connect"),
        ("http://[::1]:8931/", "[::1]:8931"),
        ("https://u:secret@mcp.example/", "no password"),
        ("file:///etc/passwd", "must begin with https://"),
        ("https://mcp.example:x/", "cannot be understood"),
        ("https://mcp.exa\nmple/", "characters"),
        ("https://mcp.example/" + "x" * 3000, "too long"),
        ("", "must begin with"),
    ],
)
def test_what_is_not(url: str, told: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        target_of(url, HOSTS)

    assert told in str(caught.value)
    assert "secret" not in str(caught.value).replace("may be secret", "")


def test_without_a_list_nothing_is() -> None:
    with pytest.raises(NotAllowed, match="QWEN_PROXY_TOOL_HOSTS"):
        target_of("https://mcp.example/", ())
