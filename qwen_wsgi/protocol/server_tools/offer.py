"""The tools of the proxy that one client may use, and the refusals of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from qwen_wsgi.errors import ApiError, BadRequest
from qwen_wsgi.protocol.server_tools.foreign import SCHEME, ForeignServer, is_foreign

#: The server whose tool runs Python: code interpreters of the dialects are this one.
PYTHON: Final = "python"

#: Names in an error's text.
_MOST_NAMED: Final = 20


class OfferedTool(Protocol):
    """A tool that the operator offers; `tools.runner.ServerTool` is one."""

    @property
    def server(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def schema(self) -> Mapping[str, object]: ...
    @property
    def trust(self) -> bool: ...
    @property
    def is_foreign(self) -> bool: ...


@dataclass(frozen=True)
class Offer:
    """What one client may use.

    Attributes:
        tools: those that can be called now.
        refused: labels of servers of which the client's key may use nothing.
        troubles: why servers offer nothing now, by their labels.
        foreign: the addresses of the servers that the client has brought itself, by their labels.
    """

    tools: tuple[OfferedTool, ...]
    refused: frozenset[str] = frozenset()
    troubles: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict, repr=False)

    def check_address(self, url: str | None, label: str, param: str) -> None:
        """Refuse the address of a server that is neither the operator's nor was asked.

        Raises:
            BadRequest: it is not `qwen-proxy://LABEL`, nor that of `foreign`.
        """
        if not is_foreign(url, label) or self.foreign.get(label) == url:
            return
        raise BadRequest(
            "A server at an address of yours must be a tool of the request itself. Leave the "
            f"address out (or send '{SCHEME}{label[:64]}') for one that the operator offers.",
            param=param,
            code="unsupported_value",
        )

    def of_server(self, label: str, param: str) -> tuple[OfferedTool, ...]:
        """The tools of a server.

        Args:
            param: where the client names it.

        Raises:
            ApiError: there is no such server, it offers nothing now, or the key may not use it.
        """
        if found := tuple(tool for tool in self.tools if tool.server == label):
            return found
        if label in self.refused:
            raise refused(label, param)
        if label in self.troubles:
            raise ApiError(
                f"The tools of '{label}' cannot be used now: {self.troubles[label]}",
                status=503,
                code="tool_server_unavailable",
                param=param,
            )
        known = sorted({tool.server for tool in self.tools})[:_MOST_NAMED]
        offered = f"It offers you: {', '.join(known)}." if known else "It offers you none."
        raise BadRequest(
            f"This server has no tools with the label '{label[:64]}'. {offered}",
            param=param,
            code="unknown_tool_server",
        )

    def python(self, param: str) -> OfferedTool | None:
        """The tool that runs Python; None if the operator does not offer it.

        Raises:
            ApiError: it cannot be used now, or not with this key.
        """
        known = {tool.server for tool in self.tools} | self.refused | self.troubles.keys()
        return self.of_server(PYTHON, param)[0] if PYTHON in known else None


def refused(label: str, param: str | None = None) -> ApiError:
    """The refusal of a key that may not use a server's tools."""
    return _refused(f"the tools of '{label[:64]}'", "...", param)


def refused_address(origin: str, param: str) -> ApiError:
    """The refusal of a key that may bring no server at an address."""
    return _refused(f"servers of tools at {origin[:200]}", f"'{origin[:200]}'", param)


def _refused(what: str, tools: str, param: str | None) -> ApiError:
    return ApiError(
        f"Your key may not use {what}. The operator of this server can allow it: "
        f"`qwen-proxy keys edit NAME --tools {tools}`.",
        status=403,
        type="permission_error",
        code="tool_not_allowed",
        param=param,
        should_retry=False,
    )


def unusable(server: ForeignServer, why: str) -> ApiError:
    """The failure of a server that a client has brought."""
    return ApiError(
        f"The tools of your server '{server.label}' cannot be used: {why}",
        status=424,
        type="external_connector_error",
        code="tool_server_failed",
        param=server.param,
        should_retry=False,
    )


def untrusted(tools: Sequence[OfferedTool], param: str, dialect: str) -> ApiError:
    """The refusal of a tool that needs an approval, where nobody can be asked for one."""
    names = ", ".join(f"'{tool.server}.{tool.name}'" for tool in tools[:_MOST_NAMED])
    return ApiError(
        f"These tools need an approval before each call, for which {dialect} has no way: "
        f'{names}. The operator of this server can trust them ("trust": true in tools.json), or '
        "use the Responses API, which asks.",
        status=403,
        type="permission_error",
        code="tool_needs_approval",
        param=param,
        should_retry=False,
    )


def needs_trust(tool: OfferedTool) -> bool:
    """Whether a tool must not run unasked. Python need not be trusted: it runs in a sandbox; and
    of a server that the client has brought, its own word counts."""
    return not (tool.trust or tool.server == PYTHON or tool.is_foreign)
