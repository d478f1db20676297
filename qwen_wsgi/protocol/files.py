"""OpenAI's files and batches, as Model Studio has them. Pure.

From the vendor's pages of 2026-05 (files, batches), and the types of the `openai` package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol.json_access import integer, mapping, text
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.validation import bad_value, missing, unsupported, wrong_type

#: The purposes that Model Studio has, and the largest file of each, in bytes.
BATCH: Final = "batch"
EXTRACT: Final = "file-extract"
LARGEST: Final[Mapping[str, int]] = {BATCH: 500 * 1024 * 1024, EXTRACT: 150 * 1024 * 1024}

#: OpenAI's purposes for documents that a model is to read.
_DOCUMENTS: Final = ("user_data", "assistants")

#: OpenAI's purposes without a counterpart, and what to do instead.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "vision": "Send pictures as `image_url` parts of a message.",
    "fine-tune": "Models are tuned in Model Studio's console.",
    "evals": "There are no evaluations.",
}

#: What a batch may call. The last one is Model Studio's free rehearsal, with `batch-test-model`.
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/embeddings", "/v1/chat/ds-test")
_WINDOW: Final = re.compile(r"([1-9]\d{0,3})([hd])")
_HOURS: Final = (24, 336)

#: Ids of hosts are parts of paths and header lines.
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")

#: Batches that nothing more happens to.
ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})

_BATCH_FIELDS: Final = (
    *("errors", "output_file_id", "error_file_id", "in_progress_at", "expires_at"),
    *("finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"),
    *("request_counts", "metadata"),
)


def purpose_of(value: str) -> tuple[str, tuple[str, ...]]:
    """The host's purpose for that of the client, and what was changed for it.

    Raises:
        BadRequest: Model Studio has no such purpose.
    """
    if value in LARGEST:
        return value, ()
    if value in _DOCUMENTS:
        return EXTRACT, (f"purpose:{EXTRACT}",)
    if value in _ELSEWHERE:
        raise unsupported(
            "purpose",
            f"Model Studio takes no files with purpose '{value}'. {_ELSEWHERE[value]} It has "
            f"'{BATCH}' (input of POST /v1/batches) and '{EXTRACT}' (documents).",
        )
    raise bad_value("purpose", value, (*LARGEST, *_DOCUMENTS))


def file_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """A host's file object with all that OpenAI's clients read.

    Raises:
        UpstreamError: it has no usable id.
    """
    return {
        **value,
        "id": _id_of(value, "file"),
        "object": "file",
        "bytes": integer(value.get("bytes")) or 0,
        "created_at": integer(value.get("created_at")) or 0,
        "filename": text(value.get("filename"))[:1024],
        "purpose": text(value.get("purpose")),
        "status": text(value.get("status")) or "processed",
    }


def batch_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """A host's batch object with all that OpenAI's clients read.

    Raises:
        UpstreamError: it has no usable id.
    """
    made = {name: None for name in _BATCH_FIELDS} | {
        **value,
        "id": _id_of(value, "batch"),
        "object": "batch",
        "created_at": integer(value.get("created_at")) or 0,
        "endpoint": text(value.get("endpoint")),
        "input_file_id": text(value.get("input_file_id")),
        "completion_window": text(value.get("completion_window")),
        "status": text(value.get("status")),
    }
    counts = mapping(made["request_counts"])
    made["request_counts"] = {
        name: integer(counts.get(name)) or 0 for name in ("total", "completed", "failed")
    }
    for name in ("output_file_id", "error_file_id"):
        if not _ID.fullmatch(text(made[name])):
            made[name] = None
    return made


#: How a text names a file for models that read documents (qwen-long, qwen-doc).
_IN_TEXT: Final = re.compile(r"fileid://([A-Za-z0-9._-]{1,128})", re.IGNORECASE)
READERS: Final = ("qwen-long", "qwen-doc")


def ids_in(messages: Any) -> list[str]:
    """The ids of the files that the texts of some messages name, each once."""
    found: dict[str, None] = {}
    left = [messages]
    while left:
        value = left.pop()
        if isinstance(value, str):
            found.update(dict.fromkeys(_IN_TEXT.findall(value)))
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(value.values())
    return list(found)


def _id_of(value: Mapping[str, Any], what: str) -> str:
    id = text(value.get("id"))
    if not _ID.fullmatch(id):
        raise UpstreamError(f"The upstream's {what} has no usable id.", code="upstream_unexpected")
    return id


def batch_request(body: JsonObject) -> dict[str, Any]:
    """The members of a request for a batch, checked.

    Raises:
        BadRequest: one is missing, or is not what Model Studio takes.
    """
    found: dict[str, Any] = {}
    for name in ("input_file_id", "endpoint", "completion_window"):
        value = body.get(name)
        if value is None:
            raise missing(name)
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        found[name] = value
    if found["endpoint"] not in ENDPOINTS:
        raise bad_value("endpoint", found["endpoint"], ENDPOINTS)
    _check_window(found["completion_window"])
    metadata = body.get("metadata")
    if metadata is not None:
        if not isinstance(metadata, dict):
            raise wrong_type("metadata", "an object", metadata)
        found["metadata"] = metadata
    return found


def _check_window(window: str) -> None:
    parts = _WINDOW.fullmatch(window)
    hours = int(parts[1]) * (24 if parts[2] == "d" else 1) if parts else 0
    if not _HOURS[0] <= hours <= _HOURS[1]:
        raise BadRequest(
            f"Invalid 'completion_window': '{window[:20]}'. Model Studio takes from "
            f"{_HOURS[0]}h to {_HOURS[1]}h (or 1d to 14d).",
            param="completion_window",
            code="invalid_value",
        )
