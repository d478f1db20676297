"""MCP servers at addresses that a client brings with its request, and what it has them told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import validation
from qwen_wsgi.protocol.json_access import Members, mapping, objects, text
from qwen_wsgi.protocol.server_tools.openai_tools import MCP
from qwen_wsgi.protocol.validation import wrong_type

#: The scheme of an address that only names a label: `qwen-proxy://time`.
SCHEME: Final = "qwen-proxy://"
#: Servers of one request: each is asked before the answer begins.
MOST_SERVERS: Final = 8

_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_HEADERS: Final = 32
_HEADERS_CHARS: Final = 16 * 1024
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")
#: What the connection itself needs, and MCP.
_NOT_THEIRS: Final = frozenset(
    {
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length"),
        *("content-type", "expect", "host", "keep-alive", "last-event-id", "mcp-protocol-version"),
        *("mcp-session-id", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)
_SECRET: Final = ("authorization", "authorization_token", "headers")


@dataclass(frozen=True)
class ForeignServer:
    """A server of a client.

    Attributes:
        param: where the client names its address.
    """

    label: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    param: str = ""

    @property
    def origin(self) -> str:
        """Scheme, host and port of its address."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.lower()}"


def is_foreign(url: str | None, label: str) -> bool:
    """Whether an address is none of the operator's servers'."""
    return bool(url) and str(url).removesuffix("/") != SCHEME + label


def in_openai_tools(body: Members) -> tuple[ForeignServer, ...]:
    """Those of chat and of the Responses API.

    Raises:
        BadRequest: an address, or what goes with it, is invalid.
    """
    found = []
    for index, tool in enumerate(objects(body.get("tools"))):
        path = f"tools[{index}]."
        if tool.get("type") != MCP:
            continue
        label = validation.required_text(tool, "server_label", path)
        url = validation.text(tool, "server_url", path)
        if url and is_foreign(url, label):
            headers = validation.mapping(tool, "headers", path) or {}
            token = validation.text(tool, "authorization", path)
            found.append(_server(label, url, headers, token, path, "server_"))
    return _distinct(found)


def in_mcp_servers(body: Members) -> tuple[ForeignServer, ...]:
    """Those of the Messages API. What is malformed is told by whoever reads it after this.

    Raises:
        BadRequest: an address, or what goes with it, is invalid.
    """
    found = []
    for index, server in enumerate(objects(body.get("mcp_servers"))):
        label, url = text(server.get("name")), text(server.get("url"))
        if label and is_foreign(url, label):
            token = text(server.get("authorization_token"))
            found.append(_server(label, url, {}, token, f"mcp_servers.{index}.", ""))
    return _distinct(found)


def _server(
    label: str, url: str, headers: Mapping[str, Any], token: str | None, path: str, prefix: str
) -> ForeignServer:
    param = f"{path}{prefix}url"
    if not _LABEL.fullmatch(label):
        raise BadRequest(
            "The label of a server must be of 1 to 64 letters, digits, - and _.",
            param=path + ("server_label" if prefix else "name"),
            code="invalid_value",
        )
    try:
        is_address = bool(urlsplit(url).hostname)
    except ValueError:
        is_address = False
    if not is_address:
        raise BadRequest(
            "The address of the server cannot be understood. It must begin with https:// and a "
            "host; or leave it out, and name a server that is offered here.",
            param=param,
            code="invalid_value",
        )
    sent = _headers(headers, path + "headers")
    if token:
        bearer = token if token.lower().startswith("bearer ") else f"Bearer {token}"
        sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
        sent |= _headers({"Authorization": bearer}, path + "authorization")
    return ForeignServer(label, url, sent, param)


def _headers(given: Mapping[str, Any], param: str) -> dict[str, str]:
    if len(given) > _MOST_HEADERS or len(str(given)) > _HEADERS_CHARS:
        raise BadRequest(
            f"A server may be sent {_MOST_HEADERS} headers with {_HEADERS_CHARS} characters.",
            param=param,
            code="invalid_value",
        )
    for name, value in given.items():
        if not isinstance(value, str):
            raise wrong_type(param, "an object of strings", value)
        if not (_HEADER.fullmatch(name) and _VALUE.fullmatch(value)):
            raise BadRequest(
                "A header has characters that no header may have.",
                param=param,
                code="invalid_value",
            )
        if name.lower() in _NOT_THEIRS:
            raise BadRequest(
                f"The header '{name}' is the connection's own. Leave it out.",
                param=param,
                code="invalid_value",
            )
    return dict(given)


def _distinct(servers: Iterable[ForeignServer]) -> tuple[ForeignServer, ...]:
    by_label: dict[str, ForeignServer] = {}
    for each in servers:
        known = by_label.setdefault(each.label, each)
        if (known.url, known.headers) != (each.url, each.headers):
            raise BadRequest(
                f"Two servers have the label '{each.label}'. Give each its own.",
                param=each.param,
                code="invalid_value",
            )
    if len(by_label) > MOST_SERVERS:
        raise BadRequest(
            f"A request may bring {MOST_SERVERS} servers of tools.",
            param="tools",
            code="too_many_tools",
        )
    return tuple(by_label.values())


def without_secrets(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool of a request as it may be stored and shown: without what only its server is to get.

    Of an address that the client has brought, scheme and host stay, as at OpenAI's.
    """
    if mapping(tool).get("type") != MCP:
        return tool
    return _bare(tool, "server_url", text(tool.get("server_label")))


def recordable(body: Any) -> Any:
    """The body of a request without what only servers of its client are to get."""
    if not isinstance(body, dict):
        return body
    changed: dict[str, Any] = {}
    if isinstance(tools := body.get("tools"), list):
        changed["tools"] = [without_secrets(tool) for tool in tools]
    if isinstance(servers := body.get("mcp_servers"), list):
        changed["mcp_servers"] = [
            _bare(each, "url", text(each.get("name"))) if isinstance(each, dict) else each
            for each in servers
        ]
    if isinstance(items := body.get("input"), list):
        changed["input"] = [
            {**each, "tools": [without_secrets(tool) for tool in each["tools"]]}
            if isinstance(each, dict) and isinstance(each.get("tools"), list)
            else each
            for each in items
        ]
    return {**body, **changed}


def _bare(given: dict[str, Any], name: str, label: str) -> dict[str, Any]:
    kept = {member: value for member, value in given.items() if member not in _SECRET}
    url = text(given.get(name))
    if is_foreign(url, label):
        try:
            parts = urlsplit(url)
        except ValueError:
            return {**kept, name: "<redacted>"}
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        kept[name] = shown + "/<redacted>" * (url.rstrip("/") != shown)
    return kept
