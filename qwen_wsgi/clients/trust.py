"""How each client is made to trust a certificate authority that only this LAN knows. Pure.

Only a few take an authority of their own; the others need it in the system's list.
"""

from __future__ import annotations

from typing import Final

#: Variables with the path of an authority's certificate, by the client's name.
_VARIABLES: Final = {
    "codex": "CODEX_CA_CERTIFICATE",
    **dict.fromkeys(
        ("claude-code", "opencode", "qwen-code", "openai-node", "vercel-ai-sdk"),
        "NODE_EXTRA_CA_CERTS",
    ),
}
_PYTHON: Final = (
    "on Debian put it into the system's list (`sudo cp ca.crt "
    "/usr/local/share/ca-certificates/qwen-proxy.crt && sudo update-ca-certificates`) and set "
    "`SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt` in its environment"
)
_EDITOR: Final = "put it into the system's list, and start the editor again"

#: By the client's name.
_HOW: Final = {
    **{
        client: f"set `{variable}=/path/to/ca.crt` in its environment"
        for client, variable in _VARIABLES.items()
    },
    "continue": _EDITOR,
    "cline": _EDITOR,
    "curl": "add `--cacert /path/to/ca.crt`",
}


def variable(client: str) -> str:
    """The environment variable that makes a client trust an authority; "" if it has none."""
    return _VARIABLES.get(client, "")


def note(client: str, authority: str) -> str:
    """A sentence or two on how a client comes to trust the authority.

    Args:
        authority: the path of its certificate on the server.
    """
    return (
        "The server's certificate is of its own authority, which the client does not know. Copy "
        f"{authority} from the server to the client's machine; then {_HOW.get(client, _PYTHON)}."
    )
