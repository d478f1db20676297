"""`/admin/v1/keys`: the client keys, as `qwen-proxy keys` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flask import Blueprint, Response

from qwen_wsgi.access.client_key import (
    KeyProblem,
    NameTaken,
    NewKey,
    changes_of,
    seconds_of,
)
from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.admin.access import check_admin, read_members
from qwen_wsgi.errors import ApiError, BadRequest, NotFound
from qwen_wsgi.state.database.client_keys import ClientKeys

T = TypeVar("T")

blueprint = Blueprint("admin_keys", __name__)
blueprint.before_request(check_admin)


@blueprint.get("/admin/v1/keys")
def list_keys() -> Response:
    """All keys, the oldest first, also those that were revoked: `{"object": "list", "data"}`."""
    keys = _do(ClientKeys.all)
    return http.json_value({"object": "list", "data": [key.json() for key in keys]})


@blueprint.post("/admin/v1/keys")
def create() -> Response:
    """Make a key; the answer has its secret in `key`, this once."""
    changes = _changes(read_members())
    return _told_once(_do(lambda store: store.add(changes)), 201)


@blueprint.get("/admin/v1/keys/<wanted>")
def retrieve(wanted: str) -> Response:
    """A key, by its id or name."""
    return _told(wanted, lambda store: store.find(wanted))


@blueprint.patch("/admin/v1/keys/<wanted>")
def change(wanted: str) -> Response:
    """Change the members of a key that the body has."""
    changes = _changes(read_members())
    return _told(wanted, lambda store: store.edit(wanted, changes))


@blueprint.delete("/admin/v1/keys/<wanted>")
def revoke(wanted: str) -> Response:
    """End a key for good; it stays in the list, with `revoked_at`."""
    return _told(wanted, lambda store: store.revoke(wanted))


@blueprint.post("/admin/v1/keys/<wanted>/rotate")
def rotate(wanted: str) -> Response:
    """Give a key a new secret, which the answer has in `key`; `{"grace": "1h"}` is how long the old
    one works on."""
    members = read_members()
    if unknown := members.keys() - {"grace"}:
        raise _refused(KeyProblem(f"There is no member '{min(unknown)[:64]}', but 'grace'."))
    try:
        grace_s = seconds_of(members.get("grace", 0), "grace", zero=True)
    except KeyProblem as problem:
        raise _refused(problem) from None
    made = _do(lambda store: store.rotate(wanted, grace_s=grace_s))
    return _told_once(_found(made, wanted), 200)


def _changes(members: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return changes_of(members, now=lifecycle.live().services.clock.now())
    except KeyProblem as problem:
        raise _refused(problem) from None


def _do(work: Callable[[ClientKeys], T]) -> T:
    """Do something with the keys.

    Raises:
        ApiError: 400, 409 or 503, which tells an admin what the log tells the operator.
    """
    services = lifecycle.live().services
    try:
        result = work(services.client_keys)
    except KeyProblem as problem:
        raise _refused(problem) from None
    # The next call may be one with the new key.
    services.key_ring.look_again()
    return result


def _refused(problem: KeyProblem) -> ApiError:
    if isinstance(problem, NameTaken):
        return ApiError(
            str(problem),
            status=409,
            type="invalid_request_error",
            code="name_taken",
            param="name",
        )
    return BadRequest(str(problem), param=problem.param or None, code="invalid_value")


def _told(wanted: str, work: Callable[[ClientKeys], Any]) -> Response:
    return http.json_value(_found(_do(work), wanted).json())


def _told_once(made: NewKey, status: int) -> Response:
    response = http.json_value({**made.key.json(), "key": made.secret}, status)
    response.headers["cache-control"] = "no-store"
    return response


def _found(found: T | None, wanted: str) -> T:
    if found is None:
        raise NotFound(
            f"There is no client key '{wanted[:64]}'. GET /admin/v1/keys lists all.",
            param="key",
            code="key_not_found",
        )
    return found
