"""DELETE /v1/chats/delete: chats of the caller's own web account."""

from __future__ import annotations

import re
from typing import Final

from flask import Blueprint, Response

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.admin.access import read_members
from qwen_wsgi.api.dialects.generation import forwarded_headers
from qwen_wsgi.errors import BadRequest, Forbidden

blueprint = Blueprint("web_chats", __name__)
blueprint.before_request(lifecycle.check_caller)

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
MOST: Final = 100


@blueprint.delete("/v1/chats/delete")
def delete() -> Response:
    """Delete the chats that `{"ids": [...]}` names, or with `{"all": true}` all that there are."""
    call = lifecycle.live()
    assert call.client is not None, "check_caller comes first"
    if call.client.web is None:
        raise Forbidden(
            "Chats are deleted with a web token of their owner alone: this is not for the "
            "operator's account.",
            code="web_token_required",
        )
    members = read_members()
    account = call.services.pool.of_token(call.client.web)
    headers, chats = forwarded_headers(call.environ), call.services.web_chats
    if members.get("all") is True and "ids" not in members:
        chats.delete_all(account, headers)
        return http.json_value({"object": "chats.deleted", "all": True})
    ids = _ids(members.get("ids"))
    if "all" in members:
        raise _wrong("Send `ids` or `all`, not both.")
    outcomes = chats.delete_each(account, ids, headers)
    pairs = list(zip(ids, outcomes, strict=True))
    failed = [{"id": id, "code": e.code, "message": e.message} for id, e in pairs if e is not None]
    if len(failed) == len(ids) and (first := outcomes[0]) is not None:
        raise first
    return http.json_value(
        {
            "object": "chats.deleted",
            "deleted": [id for id, error in pairs if error is None],
            "failed": failed,
        }
    )


def _ids(value: object) -> list[str]:
    if not isinstance(value, list) or not value:
        raise _wrong('Name the chats to delete: {"ids": ["…"]}, or {"all": true} for all of them.')
    if len(value) > MOST:
        raise _wrong(f"At most {MOST} chats are deleted at a time.")
    for id in value:
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise _wrong("An id of a chat has letters, digits, `-` and `_` alone.")
    return list(dict.fromkeys(value))


def _wrong(message: str) -> BadRequest:
    return BadRequest(message, param="ids", code="invalid_value")
