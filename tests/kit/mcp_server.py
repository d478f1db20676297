"""An MCP server over stdio with one tool, which says how it was called: `mcp_server.py NAME`."""

from __future__ import annotations

import json
import sys
from typing import Any


def tool(name: str) -> dict[str, Any]:
    """The description of the tool."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"name": name, "description": "Tells the weather of a city.", "inputSchema": schema}


def result(name: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """What a request is answered with (Model Context Protocol, 2025-06-18)."""
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "weather", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [tool(name)]}
    if method == "tools/call":
        text = f"{params['name']} says: sun over {params['arguments']['city']}"
        return {"content": [{"type": "text", "text": text}]}
    return {}


def main(name: str) -> None:
    """Answer one request a line, until the client closes."""
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:  # others are notifications
            answer = result(name, request["method"], request.get("params", {}))
            print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": answer}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
