"""GET /v1/responses: the handshake of a WebSocket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response
from werkzeug.exceptions import MethodNotAllowed

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.flask_app import FinishedResponse
from qwen_wsgi.api.websocket.session import Session
from qwen_wsgi.errors import ApiError, StreamBroken
from qwen_wsgi.protocol.websocket import handshake

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

blueprint = Blueprint("websocket", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.get("/v1/responses")
def connect() -> Response:
    """Begin a WebSocket; its client gets the events of as many responses as it requests."""
    call = lifecycle.live()
    services, environ = call.services, call.environ
    if not handshake.is_upgrade(environ) or "gunicorn.socket" not in environ:
        raise MethodNotAllowed(valid_methods=["POST"])
    services.guard.check_page(environ)
    try:
        accept = handshake.accepted(environ)
    except ApiError as error:
        if error.status != 426:
            raise
        call.record.fail(error)
        response = http.error(error)
        response.headers["sec-websocket-version"] = handshake.VERSION
        return response
    assert call.client is not None, "check_caller comes first"
    session = Session(services, environ, call.client, call.record.request_id)
    services.connections.enter(session, call.client.id)
    return _Upgrade(session, accept)


class _Upgrade(FinishedResponse):
    """The answer to a handshake. gunicorn is given a body that never begins: the session writes
    to the client's socket itself, and at its end the connection is closed."""

    def __init__(self, session: Session, accept: str) -> None:
        super().__init__(status=101)
        self.headers.clear()
        self.headers.add("upgrade", "websocket")
        self.headers.add("connection", "Upgrade")
        self.headers.add("sec-websocket-accept", accept)
        self._session = session
        self.call_on_close(session.leave)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        head = f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode("latin-1")
        sock: Any = environ["gunicorn.socket"]
        # `server.ClientSocket` has it; a TLS socket is used as it is.
        take_over = getattr(sock, "take_over", None)
        return _Body(self, head, sock if take_over is None else take_over())

    def serve(self, sock: Any, head: bytes) -> None:
        self._session.run(sock, head)


class _Body:
    """The body that gunicorn iterates over, and closes."""

    def __init__(self, upgrade: _Upgrade, head: bytes, sock: Any) -> None:
        self._upgrade = upgrade
        self._head = head
        self._sock = sock

    def __iter__(self) -> Iterator[bytes]:
        self._upgrade.serve(self._sock, self._head)
        raise StreamBroken("the WebSocket is closed")

    def close(self) -> None:
        self._upgrade.close()
