"""Servers of tools that clients bring, as requests name them, and what is kept of that."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol.server_tools.foreign import in_mcp_servers, in_openai_tools, recordable

MINE: dict[str, Any] = {
    "type": "mcp",
    "server_label": "mine",
    "server_url": "https://MCP.example:8443/a/hidden?key=hidden",
    "headers": {"authorization": "Basic hidden", "X-A": "1"},
}


def test_the_word_of_authorization_wins_over_a_header() -> None:
    (found,) = in_openai_tools({"tools": [{**MINE, "authorization": "Bearer t"}]})

    assert found.headers == {"X-A": "1", "Authorization": "Bearer t"}
    assert found.origin == "https://mcp.example:8443"
    assert "hidden" not in repr(found)


@pytest.mark.parametrize("url", [None, "", "qwen-proxy://mine", "qwen-proxy://mine/"])
def test_addresses_that_only_name_a_label_are_none_of_the_clients(url: str | None) -> None:
    assert in_openai_tools({"tools": [{**MINE, "server_url": url}]}) == ()
    assert in_mcp_servers({"mcp_servers": [{"name": "mine", "url": url}]}) == ()


def test_the_same_server_twice_is_one() -> None:
    assert len(in_openai_tools({"tools": [MINE, MINE]})) == 1


def test_what_is_recorded_has_no_secrets_of_servers() -> None:
    secret = {"authorization": "hidden", "authorization_token": "hidden"}
    body = {
        "tools": [{**MINE, **secret}, {"type": "function", "name": "f"}, "nonsense"],
        "mcp_servers": [{"name": "mine", "url": "https://a.example/hidden", **secret}, 5],
        "input": [{"type": "additional_tools", "tools": [{**MINE, **secret}]}, "x"],
        "model": "m",
    }

    found = recordable(body)

    assert "hidden" not in str(found)
    shown = {"type": "mcp", "server_label": "mine"}
    shown["server_url"] = "https://MCP.example:8443/<redacted>"
    assert found["tools"] == [shown, {"type": "function", "name": "f"}, "nonsense"]
    assert found["mcp_servers"] == [{"name": "mine", "url": "https://a.example/<redacted>"}, 5]
    assert found["model"] == "m"
    assert recordable([1]) == [1]


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://a.example", "https://a.example"),
        ("https://a.example/", "https://a.example"),
        ("https://u:hidden@a.example", "https://a.example/<redacted>"),
        ("https://[hidden", "<redacted>"),
        ("qwen-proxy://mine", "qwen-proxy://mine"),
    ],
)
def test_of_an_address_the_host_is_kept(url: str, kept: str) -> None:
    found = recordable({"tools": [{**MINE, "server_url": url}]})

    assert found["tools"][0]["server_url"] == kept
