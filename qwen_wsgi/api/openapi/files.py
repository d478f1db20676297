"""Files and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qwen_wsgi.api.files.files import LARGEST_PAGE
from qwen_wsgi.api.openapi.json_schema import (
    Schema,
    answer,
    file,
    flag,
    integer,
    mapping,
    maybe,
    page,
    ref,
    request,
    text,
)
from qwen_wsgi.api.openapi.operations import FORM, JSON, Answer, Operation, Query, paged
from qwen_wsgi.protocol import files

BATCH: Final[Mapping[str, Schema]] = {
    "input_file_id": text("A file with purpose `batch`: a request on each line."),
    "endpoint": text("What each line calls.", *files.ENDPOINTS),
    "completion_window": text("`24h` to `336h`, or `1d` to `14d`."),
    "metadata": mapping(),
}

SCHEMAS: Final[Mapping[str, Schema]] = {
    "file": answer(
        {
            "id": text(),
            "object": text("", "file"),
            "bytes": integer(),
            "created_at": integer(),
            "filename": text(),
            "purpose": text(),
            "status": text(),
        }
    ),
    "files": page(ref("file")),
    "deleted_file": answer({"id": text(), "object": text("", "file"), "deleted": flag()}),
    "batch": answer(
        {
            "id": text(),
            "object": text("", "batch"),
            "endpoint": text(),
            "input_file_id": text(),
            "completion_window": text(),
            "status": text("`validating`, `in_progress`, `completed`, `failed`, …"),
            "output_file_id": maybe(text("Its answers.")),
            "error_file_id": maybe(text("The lines that failed.")),
            "created_at": integer(),
            "request_counts": answer(
                {"total": integer(), "completed": integer(), "failed": integer()}
            ),
            "errors": {},
            "metadata": {},
        }
    ),
    "batches": page(ref("batch")),
}

_TAG: Final = "Files and batches"
_FILE: Final = Answer("The file.", {JSON: ref("file")})
_BATCH: Final = Answer("The batch.", {JSON: ref("batch")})


OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/files",
        _TAG,
        "Upload a file",
        (_FILE,),
        description="It goes to the account as it comes.",
        body={
            FORM: request(
                {
                    "file": file(),
                    "purpose": text("What it is for.", *files.LARGEST, "user_data", "assistants"),
                },
                required=("file", "purpose"),
            )
        },
        decodes=False,
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/files",
        _TAG,
        "The client's files",
        (Answer("A page of the list.", {JSON: ref("files")}),),
        query=(
            Query("purpose", text("Only those with this purpose.")),
            *paged(LARGEST_PAGE),
        ),
        errors=(400,),
    ),
    Operation("GET", "/v1/files/{id}", _TAG, "A file", (_FILE,), asks_upstream=True),
    Operation(
        "GET",
        "/v1/files/{id}/content",
        _TAG,
        "The bytes of a file",
        (Answer("The bytes, with the content type that the account tells.", {"*/*": None}),),
        asks_upstream=True,
    ),
    Operation(
        "DELETE",
        "/v1/files/{id}",
        _TAG,
        "Delete a file",
        (Answer("It is gone.", {JSON: ref("deleted_file")}),),
        asks_upstream=True,
    ),
    Operation(
        "POST",
        "/v1/batches",
        _TAG,
        "Begin a batch",
        (_BATCH,),
        body={JSON: request(BATCH, required=("input_file_id", "endpoint", "completion_window"))},
        asks_upstream=True,
    ),
    Operation(
        "GET",
        "/v1/batches",
        _TAG,
        "The client's batches",
        (Answer("A page of the list.", {JSON: ref("batches")}),),
        query=paged(),
        errors=(400,),
    ),
    Operation("GET", "/v1/batches/{id}", _TAG, "A batch", (_BATCH,), asks_upstream=True),
    Operation(
        "POST",
        "/v1/batches/{id}/cancel",
        _TAG,
        "Have a batch end early",
        (_BATCH,),
        asks_upstream=True,
    ),
)
