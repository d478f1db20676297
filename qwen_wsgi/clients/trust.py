"""How each client is made to trust a certificate authority that only this LAN knows. Pure.

Only a few take an authority of their own; the others need it in the system's list.
"""

from __future__ import annotations

from typing import Final

_NODE: Final = "set `NODE_EXTRA_CA_CERTS=/path/to/ca.crt` in its environment"
_PYTHON: Final = (
    "on Debian put it into the system's list (`sudo cp ca.crt "
    "/usr/local/share/ca-certificates/qwen-proxy.crt && sudo update-ca-certificates`) and set "
    "`SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt` in its environment"
)
_EDITOR: Final = "put it into the system's list, and start the editor again"

#: By the client's name.
_HOW: Final = {
    "codex": "set `CODEX_CA_CERTIFICATE=/path/to/ca.crt` in its environment",
    "claude-code": _NODE,
    "opencode": _NODE,
    "qwen-code": _NODE,
    "openai-node": _NODE,
    "vercel-ai-sdk": _NODE,
    "continue": _EDITOR,
    "cline": _EDITOR,
    "curl": "add `--cacert /path/to/ca.crt`",
}


def note(client: str, authority: str) -> str:
    """A sentence or two on how a client comes to trust the authority.

    Args:
        authority: the path of its certificate on the server.
    """
    return (
        "The server's certificate is of its own authority, which the client does not know. Copy "
        f"{authority} from the server to the client's machine; then {_HOW.get(client, _PYTHON)}."
    )
