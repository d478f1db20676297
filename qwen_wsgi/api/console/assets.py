"""What pages load. No secret is in it, so it needs no session; browsers keep it."""

from __future__ import annotations

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.console import files
from qwen_wsgi.errors import NotFound

blueprint = Blueprint("console_assets", __name__)
blueprint.before_request(page.check_browser)


@blueprint.get("/console/assets/<name>")
def asset(name: str) -> Response:
    """One of them; with its tag in the address it is kept for a year."""
    lifecycle.live().record.quiet = True
    found = files.assets().get(name)
    if found is None:
        raise NotFound("The console has no such file.", code="unknown_url")
    response = http.text("", found.content_type)
    response.set_data(found.content)
    current = request.args.get("v") == found.tag
    response.headers.extend(
        {
            "cache-control": "private, max-age=31536000, immutable" if current else "no-cache",
            "x-content-type-options": "nosniff",
            "cross-origin-resource-policy": "same-origin",
            "etag": f'"{found.tag}"',
        }
    )
    return response
