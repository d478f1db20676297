"""GET /openapi.json and GET /qwen.json: the description of this API, for everybody."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.greenlets import apart

blueprint = Blueprint("openapi", __name__)
blueprint.before_request(lifecycle.refuse_pages)


@blueprint.get("/openapi.json")
@blueprint.get("/qwen.json")
def describe() -> Response:
    """The description of this API, which is made when it is first asked for."""
    from qwen_wsgi.api.openapi import document

    lifecycle.live().record.quiet = True
    # The first time it takes as long as dozens of calls.
    return http.json_bytes(apart(document.rendered))
