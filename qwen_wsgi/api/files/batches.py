"""OpenAI's batches: `/v1/batches` at the account that has the input file.

A batch is its client's own, and so are the files that it makes.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.files.files import ask, not_found, owned_by_client, page_of_client
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.paging import limit_of, page
from qwen_wsgi.errors import ApiError, BadRequest, UpstreamError, forget_frames
from qwen_wsgi.greenlets import in_order
from qwen_wsgi.protocol import files as protocol
from qwen_wsgi.protocol.json_access import text
from qwen_wsgi.state.database.host_objects import MOST_OF_OWNER, Owned

log = logging.getLogger(__name__)

blueprint = Blueprint("batches", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Batches of a list that are looked at at a time: hosts take ten such requests a second.
_AT_A_TIME: Final = 4


@blueprint.post("/v1/batches")
def create() -> Response:
    """Begin a batch; the host checks the lines of its file later.

    The host's answer is waited for even if the client is gone: a batch without an owner would be
    billed all the same.
    """
    call = lifecycle.live()
    wanted = protocol.batch_request(call.read_body())
    if call.watch is not None:
        call.watch.stop()
    objects = call.services.host_objects
    file = owned_by_client("file", wanted["input_file_id"], param="input_file_id")
    if objects.count("batch", call.owner) >= MOST_OF_OWNER:
        raise BadRequest("You have too many batches of the last 40 days.", code="too_many_batches")
    made = protocol.batch_object(ask(call, file, "POST", "/batches", wanted))
    _keep(call, file.account, made)
    return http.json_value(made)


@blueprint.get("/v1/batches")
def list_batches() -> Response:
    """The client's batches; those that have not ended are asked for."""
    call = lifecycle.live()
    found, more = page_of_client("batch", limit=limit_of(request.args))
    works = (partial(_latest, call, each) for each in found)
    return http.json_value(page(list(in_order(works, at_a_time=_AT_A_TIME)), has_more=more))


@blueprint.get("/v1/batches/<id>")
def retrieve(id: str) -> Response:
    """A batch, as its account tells of it now."""
    return http.json_value(_asked(lifecycle.live(), owned_by_client("batch", id)))


@blueprint.post("/v1/batches/<id>/cancel")
def cancel(id: str) -> Response:
    """Have a batch end early. What was done already is billed, and in its output."""
    call = lifecycle.live()
    owned = owned_by_client("batch", id)
    made = protocol.batch_object(ask(call, owned, "POST", f"/batches/{owned.id}/cancel"))
    _keep(call, owned.account, made)
    return http.json_value(made)


def _latest(call: LiveCall, owned: Owned) -> dict[str, Any]:
    """A batch of a list. One that has ended is as it was; where its account does not answer, so is
    every other one."""
    if owned.value.get("status") in protocol.ENDED:
        return owned.value
    try:
        return _asked(call, owned)
    except ApiError as error:
        forget_frames(error)
        return owned.value


def _asked(call: LiveCall, owned: Owned) -> dict[str, Any]:
    made = protocol.batch_object(ask(call, owned, "GET", f"/batches/{owned.id}"))
    _keep(call, owned.account, made)
    return made


def _keep(call: LiveCall, account: str, made: dict[str, Any]) -> None:
    """Note what is known of a batch, and that its files are the client's.

    Raises:
        ApiError: 503: it cannot be noted; 502: the batch has the id of somebody else's.
    """
    if not call.services.host_objects.put("batch", call.owner, account, made):
        raise UpstreamError(
            "The upstream gave the batch the id of another one.", should_retry=False
        )
    for name in ("output_file_id", "error_file_id"):
        if id := text(made[name]):
            _adopt(call, account, id)


def _adopt(call: LiveCall, account: str, id: str) -> None:
    """Make a file that a batch has made its client's. If the host does not tell of it now, the next
    look at the batch tries again."""
    objects = call.services.host_objects
    if objects.get("file", call.owner, id) is not None:
        return
    try:
        told = ask(call, Owned(id, account, {}), "GET", f"/files/{id}")
    except ApiError as error:
        log.warning("the file of a batch is not known yet account=%s: %s", account, error)
        forget_frames(error)
        return
    made = protocol.file_object(told)
    if made["id"] != id or not objects.put("file", call.owner, account, made):
        raise not_found("file", id)
