"""OpenAI's files: `/v1/files` over the files of an account of Model Studio.

A file is its client's own (`state.database.host_objects`): nobody else sees, reads or deletes it.
Its id is the host's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flask import Blueprint, Response, request

from qwen_wsgi.api import body, http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.api.files.form import UploadForm
from qwen_wsgi.api.late_answers import carried_download
from qwen_wsgi.api.lifecycle import LiveCall
from qwen_wsgi.api.paging import limit_of, oldest_first, page
from qwen_wsgi.errors import ApiError, BadRequest, NotFound, UpstreamError
from qwen_wsgi.greenlets import watch_client
from qwen_wsgi.protocol import files as protocol
from qwen_wsgi.protocol.validation import missing, unsupported
from qwen_wsgi.state.database.host_objects import MOST_OF_OWNER, Kind, Owned
from qwen_wsgi.upstream.host_files import Upload

blueprint = Blueprint("files", __name__)
blueprint.before_request(lifecycle.check_caller)

#: Entries of a page: the most that OpenAI's list of files gives.
LARGEST_PAGE: Final = 10_000


@blueprint.post("/v1/files")
def create() -> Response:
    """Upload a file: multipart/form-data with `file` and `purpose`, in any order.

    It goes to the account as it comes. Once all of it was sent its answer is waited for even if the
    client is gone: a file without an owner would be nobody's.
    """
    call = lifecycle.live()
    services, record = call.services, call.record
    call.admit(upload=True)
    plan = services.router.plan_files(permit=generation.permit_of(call))
    _check_room(call)
    pieces = body.pieces(
        call.environ, services.settings, max_bytes=services.settings.max_upload_bytes
    )
    form = UploadForm(call.environ.get("CONTENT_TYPE", ""), pieces)
    form.begin()
    early = "purpose" in form.fields
    upload = Upload(
        form.filename,
        form.file_type,
        form.file_pieces(),
        before=_purpose(call, form) if early else {},
        # Of a form whose purpose comes last: a refusal leaves the request to the host unfinished.
        behind=lambda: {} if early else _purpose(call, form),
    )
    told = services.host_files.upload(
        plan, upload, generation.forwarded_headers(call.environ), record
    )
    made = protocol.file_object(told.value)
    _take_over(call, told.account, made)
    return http.json_value(made)


@blueprint.get("/v1/files")
def list_files() -> Response:
    """The client's files, as their accounts last told of them."""
    purpose = request.args.get("purpose", "")
    if purpose:
        purpose = purpose if purpose == "batch_output" else protocol.purpose_of(purpose)[0]
    limit = limit_of(request.args, default=LARGEST_PAGE, largest=LARGEST_PAGE)
    found, more = page_of_client("file", limit=limit, purpose=purpose)
    return http.json_value(page([each.value for each in found], has_more=more))


@blueprint.get("/v1/files/<id>")
def retrieve(id: str) -> Response:
    """A file, as its account tells of it now."""
    call = lifecycle.live()
    owned = owned_by_client("file", id)
    made = protocol.file_object(ask(call, owned, "GET", f"/files/{owned.id}"))
    call.services.host_objects.put("file", call.owner, owned.account, made)
    return http.json_value(made)


@blueprint.get("/v1/files/<id>/content")
def content(id: str) -> Response:
    """The bytes of a file, as they come from its account."""
    call = lifecycle.live()
    services, owned = call.services, owned_by_client("file", id)
    call.admit()
    call.watch = watch_client(call.environ)
    download = services.host_files.download(
        services.router.plan_files(permit=generation.permit_of(call), owning=owned.account),
        f"/files/{owned.id}/content",
        generation.forwarded_headers(call.environ),
        call.record,
    )
    if download is None:
        raise not_found("file", id)
    call.relay = carried_download(call, download)
    return http.carried(call.relay, download.content_type, length=download.length)


@blueprint.delete("/v1/files/<id>")
def delete(id: str) -> Response:
    """Delete a file, at its account as well."""
    call = lifecycle.live()
    owned = owned_by_client("file", id)
    gone = False
    try:
        ask(call, owned, "DELETE", f"/files/{owned.id}")
    except NotFound:
        gone = True
    call.services.host_objects.remove("file", call.owner, id)
    if gone:
        raise not_found("file", id)
    return http.json_value({"id": id, "object": "file", "deleted": True})


def _purpose(call: LiveCall, form: UploadForm) -> Mapping[str, str]:
    """The field for the host.

    Raises:
        ApiError: it is missing, or not one that hosts have; or the file is too large for it.
    """
    if not (given := form.fields.get("purpose", "")):
        raise missing("purpose")
    purpose, changed = protocol.purpose_of(given)
    if changed and call.services.settings.strict:
        raise unsupported("purpose", f"Model Studio has no purpose '{given}', but '{purpose}'.")
    for field in form.fields:
        if field.startswith("expires_after") and "expires_after:dropped" not in changed:
            changed = (*changed, "expires_after:dropped")
    call.record.changed = changed
    declared, largest = int(call.environ.get("CONTENT_LENGTH") or 0), protocol.LARGEST[purpose]
    if declared > largest + body.FORM_BYTES:
        raise ApiError(
            f"The upload has {declared} bytes, and Model Studio takes files with purpose "
            f"'{purpose}' up to {largest // 1024**2} MB.",
            status=413,
            type="invalid_request_error",
            code="file_too_large",
            param="file",
        )
    return {"purpose": purpose}


def _check_room(call: LiveCall) -> None:
    """Refuse an upload before it begins where its owner has too many files already.

    Raises:
        BadRequest: so it is.
        ApiError: 503: nothing can be noted now.
    """
    if (count := call.services.host_objects.count("file", call.owner)) >= MOST_OF_OWNER:
        raise BadRequest(
            f"You have {count} files, the most that one client may have. Delete some first.",
            code="too_many_files",
        )


def _take_over(call: LiveCall, account: str, made: dict[str, Any]) -> None:
    """Note that the file is the client's. If that fails the file is deleted again.

    Raises:
        ApiError: 503: it cannot be noted; 502: the host gave it an id that somebody else has.
    """
    objects = call.services.host_objects
    try:
        if objects.put("file", call.owner, account, made):
            return
    except ApiError:
        ask(call, Owned(made["id"], account, made), "DELETE", f"/files/{made['id']}")
        raise
    raise UpstreamError("The upstream gave the file the id of another one.", should_retry=False)


# --- for batches as well ---------------------------------------------------------------------


def ask(
    call: LiveCall,
    owned: Owned,
    method: str,
    path: str,
    sent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ask the account that has an object.

    Raises:
        NotFound: the account does not have it any more.
        ApiError: the account did not answer, or refused.
    """
    call.admit()
    services = call.services
    headers = generation.forwarded_headers(call.environ)
    plan = services.router.plan_files(permit=generation.permit_of(call), owning=owned.account)
    answer = services.host_files.ask(plan, method, path, headers, call.record, sent)
    if answer is None:
        raise not_found(owned.value.get("object", "file"), owned.id)
    return answer


def owned_by_client(kind: Kind, id: str, *, param: str = "id") -> Owned:
    """An object of the caller.

    Raises:
        NotFound: there is none, or it is another client's.
    """
    call = lifecycle.live()
    found = call.services.host_objects.get(kind, call.owner, id)
    if found is None:
        raise not_found(kind, id, param=param)
    return found


def not_found(kind: str, id: str, *, param: str = "id") -> NotFound:
    """The refusal of an id that the client has nothing of."""
    names = {"file": "File", "batch": "Batch"}
    return NotFound(
        f"No such {names.get(kind, kind)} object: {id[:128]}. Files and batches belong to the key "
        "that made them through this proxy.",
        param=param,
        code="not_found",
    )


def page_of_client(kind: Kind, *, limit: int, purpose: str = "") -> tuple[list[Owned], bool]:
    """The caller's objects that the request's `after` and `order` ask for, and whether there are
    more.

    Raises:
        BadRequest: one of them is wrong.
    """
    call = lifecycle.live()
    after = request.args.get("after", "")
    found = call.services.host_objects.page(
        kind,
        call.owner,
        limit=limit,
        after=after,
        oldest_first=oldest_first(request.args),
        purpose=purpose,
    )
    if found is None:
        raise BadRequest(f"You have no {kind} with the id '{after[:128]}'.", param="after")
    return found
