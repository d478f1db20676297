"""An MCP server over streamable HTTP with one tool, which notes what it was sent."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

from tests.kit.mcp_server import result

TOKEN = "Bearer of-a-client-4711"


class McpHttp(http.server.ThreadingHTTPServer):
    """Answers at `/mcp`; at other paths it fails in the ways of their names.

    Attributes:
        heard: method, path and headers of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[tuple[str, str, dict[str, str]]] = []
        self.elsewhere = "http://127.0.0.1:9/"

    def url(self, path: str = "/mcp", host: str = "127.0.0.1") -> str:
        """An address of this server."""
        return f"http://{host}:{self.server_port}{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: McpHttp

    def do_POST(self) -> None:
        self._note()
        path = self.path.partition("?")[0]
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if path == "/moved":
            self._say(307, b"", Location=self.server.elsewhere)
        elif path == "/near":
            self._say(307, b"", Location="/mcp")
        elif path == "/closed" and self.headers["Authorization"] != TOKEN:
            self._say(401, b"{}")
        elif path == "/packed":
            self._say(200, b"no", **{"Content-Encoding": "gzip"})
        elif path == "/large":
            self._say(200, b'{"' + b"x" * (17 << 20))
        elif path == "/slow":
            threading.Event().wait(3)
        elif path == "/refuses" and request["method"].startswith("tools/"):
            error = {"code": -32602, "message": "not today " * 1000}
            answer = {"jsonrpc": "2.0", "id": request["id"], "error": error}
            self._say(200, json.dumps(answer).encode())
        elif "id" not in request:
            self._say(202, b"")
        else:
            found = result("weather", request["method"], request.get("params", {}))
            answer = {"jsonrpc": "2.0", "id": request["id"], "result": found}
            extra = {"Mcp-Session-Id": "s-1"} if request["method"] == "initialize" else {}
            self._say(200, json.dumps(answer).encode(), **extra)

    def do_GET(self) -> None:
        self._note()
        self._say(405, b"")

    def do_DELETE(self) -> None:
        self._note()
        self._say(200, b"")

    def _note(self) -> None:
        self.server.heard.append((self.command, self.path, dict(self.headers)))

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have left
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[McpHttp]:
    """A server that runs meanwhile."""
    with McpHttp() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
