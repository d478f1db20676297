"""Small clients of the sandbox: one on http.client, one on a bare socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from qwen_wsgi.sandbox import Sandbox

KEY = "sk-test-0123456789"
CLIENT_ID = "test-client"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.json()["error"]["message"])

    @property
    def payloads(self) -> list[str]:
        """The data of the events, for streams with plain line ends."""
        lines = self.body.decode().split("\n")
        return [line[6:] for line in lines if line.startswith("data: ")]

    @property
    def chunks(self) -> list[Any]:
        return [json.loads(data) for data in self.payloads if data != "[DONE]"]

    @property
    def deltas(self) -> list[Any]:
        return [c["choices"][0]["delta"] for c in self.chunks if c.get("choices")]

    @property
    def text(self) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas)

    @property
    def finish(self) -> list[str]:
        reasons = [c["choices"][0]["finish_reason"] for c in self.chunks if c.get("choices")]
        return [reason for reason in reasons if reason]

    @property
    def fragments(self) -> list[Any]:
        """The fragments of tool calls, in order."""
        return [fragment for d in self.deltas for fragment in d.get("tool_calls") or ()]


def call(
    sandbox: Sandbox,
    method: str,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Make one request on a connection of its own; a dict is sent as JSON."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    host, _, port = sandbox.origin.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    with closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())


def post(sandbox: Sandbox, path: str, body: Any, spec: str = "", **headers: str) -> Answer:
    """POST JSON to a route under the OpenAI base."""
    given = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    given.update({name.replace("_", "-"): value for name, value in headers.items()})
    if spec:
        given["x-sandbox"] = spec
    return call(sandbox, "POST", "/compatible-mode/v1/" + path, json.dumps(body).encode(), given)


def request_body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "qwen-plus", "messages": [{"role": "user", "content": text}], **fields}


def ask(sandbox: Sandbox, spec: str = "", **fields: Any) -> Answer:
    """Make a chat request that is not streamed."""
    return post(sandbox, "chat/completions", request_body(**fields), spec)


def stream(sandbox: Sandbox, spec: str = "", **fields: Any) -> Answer:
    """Make a streamed chat request and read all of it."""
    fields.setdefault("stream_options", {"include_usage": True})
    return post(sandbox, "chat/completions", request_body(stream=True, **fields), spec)


def form(sandbox: Sandbox, path: str, spec: str = "", **fields: str) -> Answer:
    """POST a form to one of the two OAuth endpoints."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if spec:
        headers["x-sandbox"] = spec
    return call(sandbox, "POST", f"/api/v1/oauth2/{path}", urlencode(fields).encode(), headers)


def refresh(sandbox: Sandbox, token: str, spec: str = "", client_id: str = CLIENT_ID) -> Answer:
    fields = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client_id}
    return form(sandbox, "token", spec, **fields)


@contextmanager
def raw_request(sandbox: Sandbox, data: bytes) -> Iterator[socket.socket]:
    """Send bytes on a new connection; whoever leaves the context closes it."""
    host, _, port = sandbox.origin.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(data)
        yield sock


def chat_bytes(spec: str = "", version: str = "HTTP/1.1", **fields: Any) -> bytes:
    """A chat request as bytes, streamed unless the fields say otherwise."""
    body = json.dumps(request_body(**{"stream": True, **fields})).encode()
    head = (
        f"POST /v1/chat/completions {version}\r\nHost: sandbox\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    if spec:
        head += f"x-sandbox: {spec}\r\n"
    return head.encode() + b"\r\n" + body


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the connection."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    """Read until the bytes hold a mark."""
    data = b""
    while mark not in data:
        part = sock.recv(65536)
        if not part:
            raise AssertionError(f"the connection ended before {mark!r}: {data!r}")
        data += part
    return data
