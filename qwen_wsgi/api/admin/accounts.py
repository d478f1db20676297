"""`/admin/v1/accounts`: the state of the accounts, as `qwen-proxy status` shows it."""

from __future__ import annotations

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle, status
from qwen_wsgi.api.admin.access import check_admin

blueprint = Blueprint("admin_accounts", __name__)
blueprint.before_request(check_admin)


@blueprint.get("/admin/v1/accounts")
def list_accounts() -> Response:
    """`{"object": "list", "data": [row]}`; a row is that of `text.status_row`."""
    rows = status.account_rows(lifecycle.live().services)
    return http.json_value({"object": "list", "data": rows})
