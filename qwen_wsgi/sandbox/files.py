"""Files as in Model Studio's OpenAI-compatible mode: kept in memory, seen by every key."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.wire import Request

Json = dict[str, Any]

MIB: Final = 1024 * 1024
# Purpose -> what its ids begin with, and its largest file.
_PURPOSES: Final = {"file-extract": ("file-fe-", 150 * MIB), "batch": ("file-batch-", 500 * MIB)}
_MOST_FILES: Final = 10_000
# The real service has 100 GB; this one is in somebody's memory.
_MOST_BYTES: Final = 1024 * MIB
_LONGEST_PAGE: Final = 2000

_INVALID: Final = "invalid_request_error"
_DISPOSITION: Final = re.compile(rb'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class File:
    """One file."""

    id: str
    filename: str
    purpose: str
    created_at: int
    content: bytes

    def as_json(self) -> Json:
        return {
            "id": self.id,
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "object": "file",
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass
class Storage:
    """All files. Thread-safe."""

    clock: Callable[[], float]
    _files: dict[str, File] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        with self._lock:
            self._files.clear()

    def add(self, filename: str, purpose: str, content: bytes) -> File | Refusal:
        """Keep a file under a new id."""
        begin = _PURPOSES[purpose][0] if purpose in _PURPOSES else "file-batch_output-"
        made = File(begin + secrets.token_hex(12), filename, purpose, int(self.clock()), content)
        with self._lock:
            size = sum(len(each.content) for each in self._files.values()) + len(content)
            if len(self._files) >= _MOST_FILES or size > _MOST_BYTES:
                return Refusal(
                    400, "invalid_parameter_error", "The file quota is used up.", _INVALID
                )
            self._files[made.id] = made
        return made

    def get(self, id: str) -> File | None:
        with self._lock:
            return self._files.get(id)

    def remove(self, id: str) -> None:
        with self._lock:
            self._files.pop(id, None)

    def all(self) -> list[File]:
        """The latest first."""
        with self._lock:
            return list(self._files.values())[::-1]


def missing(id: str) -> Refusal:
    return Refusal(404, "NotFound", f"No such File object: {id}", _INVALID)


def upload(storage: Storage, request: Request) -> Json | Refusal:
    """Keep the file of a multipart form."""
    fields, files = parse_form(request.header("content-type") or "", request.body)
    purpose = fields.get("purpose", "")
    if purpose not in _PURPOSES:
        text = "The purpose must be one of ['file-extract', 'batch']"
        return Refusal(400, "invalid_parameter_error", text, _INVALID)
    if "file" not in files:
        return Refusal(400, "invalid_parameter_error", "The file is required.", _INVALID)
    filename, content = files["file"]
    if not content:
        return Refusal(400, "invalid_parameter_error", "The file is empty.", _INVALID)
    if len(content) > _PURPOSES[purpose][1]:
        return Refusal(400, "invalid_parameter_error", "File size exceeds the limit.", _INVALID)
    made = storage.add(filename, purpose, content)
    return made if isinstance(made, Refusal) else made.as_json()


def listing(storage: Storage, request: Request) -> Json | Refusal:
    """A page of all files, whoever uploaded them."""
    query = {name: values[0] for name, values in parse_qs(request.query).items()}
    found = [each for each in storage.all() if query.get("purpose", each.purpose) == each.purpose]
    ids = [each.id for each in found]
    if (after := query.get("after")) is not None:
        found = found[ids.index(after) + 1 :] if after in ids else []
    limit = min(int(query.get("limit", _LONGEST_PAGE)), _LONGEST_PAGE)
    return {
        "object": "list",
        "data": [each.as_json() for each in found[:limit]],
        "has_more": len(found) > limit,
    }


def parse_form(
    content_type: str, body: bytes
) -> tuple[dict[str, str], dict[str, tuple[str, bytes]]]:
    """The fields of a multipart form, and its files as name and content."""
    _, _, boundary = content_type.partition("boundary=")
    fields: dict[str, str] = {}
    files: dict[str, tuple[str, bytes]] = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.strip('"').encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = {
            name.decode(): value.decode("utf-8", "replace")
            for name, value in _DISPOSITION.findall(head)
        }
        if "filename" in names:
            files[names.get("name", "")] = names["filename"], content
        else:
            fields[names.get("name", "")] = content.decode("utf-8", "replace")
    return fields, files
