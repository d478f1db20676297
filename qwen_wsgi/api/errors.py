"""Failures as answers, each in the form of the client's dialect."""

from __future__ import annotations

import logging

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import messages
from qwen_wsgi.api.flask_app import ROUTE_PATH
from qwen_wsgi.errors import ApiError, NotFound
from qwen_wsgi.protocol.websocket import handshake
from qwen_wsgi.shortage import fault_error

log = logging.getLogger(__name__)


def register(app: Flask) -> None:
    """Answer every failure of a request."""
    app.register_error_handler(ApiError, _api_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _fault)


def _api_error(error: ApiError) -> Response:
    call = lifecycle.live()
    call.record.fail(error)
    return messages.error(call, error) if call.is_anthropic else http.error(error)


def _http_error(error: HTTPException) -> Response:
    """Unknown routes and methods, and what Flask itself finds wrong with a request."""
    if isinstance(error, MethodNotAllowed):
        if handshake.is_begun(request.environ):
            return _api_error(handshake.refused(_no_websocket()))
        response = _api_error(
            ApiError(
                f"Not allowed to {request.method} on {request.path}.",
                status=405,
                type="invalid_request_error",
                code="method_not_allowed",
            )
        )
        if error.valid_methods:
            response.headers["allow"] = ", ".join(sorted(error.valid_methods))
        return response
    if error.code == 404:
        return _api_error(
            NotFound(
                f"Invalid URL ({request.method} {request.path}). {_suggestion()}",
                code="unknown_url",
            )
        )
    status = error.code or 500
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return _api_error(ApiError(error.description or error.name, status=status, type=kind))


def _no_websocket() -> str:
    """Why a WebSocket cannot begin."""
    if handshake.is_upgrade(request.environ):
        return "WebSockets are not supported here."
    return (
        "A proxy in front of this server took the header 'Upgrade' out of the request, so no "
        "WebSocket can begin."
    )


def _suggestion() -> str:
    """What the caller of an unknown URL may have meant."""
    routes = current_app.url_map.bind("")
    path = request.environ[ROUTE_PATH].removeprefix("/v1")
    if len(path) > 1 and routes.test(path, request.method):
        return f"Did you mean {path}? It is not below /v1."
    return "GET / lists the endpoints."


def _fault(error: Exception) -> Response:
    """Answer for a fault of ours."""
    return _api_error(fault_error(error, lifecycle.live().record.request_id))
