"""Batches as in Model Studio's OpenAI-compatible mode. One goes on by a step at each look at it."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from qwen_wsgi.sandbox import chat
from qwen_wsgi.sandbox.embeddings import embed
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec, spec_in_model
from qwen_wsgi.sandbox.files import MIB, File, Storage
from qwen_wsgi.sandbox.params import refusal_for

Json = dict[str, Any]

_INVALID: Final = "invalid_request_error"
_ENDPOINTS: Final = ("/v1/chat/completions", "/v1/embeddings", "/v1/chat/ds-test")
_TEST_MODEL: Final = "batch-test-model"
_MOST_LINES: Final = 50_000
_LONGEST_LINE: Final = 6 * MIB
_STEPS: Final = ("validating", "in_progress", "finalizing", "completed")
_ENDED: Final = frozenset({"completed", "failed", "cancelled"})


@dataclass
class Batches:
    """All batches. Thread-safe."""

    clock: Callable[[], float]
    storage: Storage
    _batches: dict[str, Json] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def clear(self) -> None:
        with self._lock:
            self._batches.clear()

    def create(self, body: Json | None) -> Json | Refusal:
        wanted = body or {}
        file = self.storage.get(str(wanted.get("input_file_id")))
        if file is None:
            return _refused(f"No such File object: {wanted.get('input_file_id')}", 404)
        if file.purpose != "batch":
            return _refused("The purpose of the input file must be batch.")
        if wanted.get("endpoint") not in _ENDPOINTS:
            return _refused(f"The endpoint must be one of {list(_ENDPOINTS)}.")
        if not 24 <= _hours(str(wanted.get("completion_window"))) <= 336:
            return _refused("completion_window must be between 24h and 336h.")
        now = int(self.clock())
        made: Json = {
            "id": "batch_" + secrets.token_hex(12),
            "object": "batch",
            "endpoint": wanted["endpoint"],
            "errors": None,
            "input_file_id": file.id,
            "completion_window": wanted["completion_window"],
            "status": _STEPS[0],
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": wanted.get("metadata"),
        }
        with self._lock:
            self._batches[made["id"]] = made
            return dict(made)

    def look(self, id: str) -> Json | Refusal:
        """A batch; it has gone on by a step since the last look."""
        with self._lock:
            batch = self._batches.get(id)
            if batch is None:
                return _refused(f"No such batch: {id}", 404)
            if batch["status"] == "cancelling":
                self._end(batch, "cancelled")
            elif batch["status"] not in _ENDED:
                self._go_on(batch)
            return dict(batch)

    def cancel(self, id: str) -> Json | Refusal:
        with self._lock:
            batch = self._batches.get(id)
            if batch is None:
                return _refused(f"No such batch: {id}", 404)
            if batch["status"] in _ENDED:
                return _refused(f"Cannot cancel a batch with status '{batch['status']}'.")
            batch.update(status="cancelling", cancelling_at=int(self.clock()))
            return dict(batch)

    def listing(self) -> Json:
        """All batches, whoever made them; the latest first."""
        with self._lock:
            data = [dict(each) for each in self._batches.values()][::-1]
        return {"object": "list", "data": data, "has_more": False}

    def _go_on(self, batch: Json) -> None:
        following = _STEPS[_STEPS.index(batch["status"]) + 1]
        file = self.storage.get(batch["input_file_id"])
        if following == "in_progress":
            lines, complaint = _checked(file, batch["endpoint"])
            if complaint:
                error = {"code": "invalid_file", "message": complaint, "param": None, "line": None}
                batch["errors"] = {"object": "list", "data": [error]}
                self._end(batch, "failed")
                return
            batch["request_counts"]["total"] = len(lines)
        if following == "completed":
            self._finish(batch, _checked(file, batch["endpoint"])[0])
        self._end(batch, following)

    def _end(self, batch: Json, status: str) -> None:
        batch.update({"status": status, f"{status}_at": int(self.clock())})

    def _finish(self, batch: Json, lines: list[Json]) -> None:
        answers = [_answer(line, batch["endpoint"], self.clock()) for line in lines]
        good = [each for each in answers if each["error"] is None]
        bad = [each for each in answers if each["error"] is not None]
        for name, found in (("output", good), ("error", bad)):
            if found:
                text = "".join(json.dumps(each) + "\n" for each in found).encode()
                made = self.storage.add(f"{batch['id']}_{name}.jsonl", "batch_output", text)
                if isinstance(made, File):
                    batch[f"{name}_file_id"] = made.id
        batch["request_counts"].update(completed=len(good), failed=len(bad))


def _refused(text: str, status: int = 400) -> Refusal:
    return Refusal(
        status, "NotFound" if status == 404 else "invalid_parameter_error", text, _INVALID
    )


def _hours(window: str) -> int:
    number, unit = window[:-1], window[-1:]
    if not number.isdecimal() or unit not in ("h", "d"):
        return 0
    return int(number) * (24 if unit == "d" else 1)


def _checked(file: File | None, endpoint: str) -> tuple[list[Json], str]:
    """The lines of an input file, and what is wrong with it, or ""."""
    rows = [row for row in (file.content if file else b"").split(b"\n") if row.strip()]
    rehearsal = endpoint == "/v1/chat/ds-test"
    if not rows:
        return [], "The input file is empty."
    if len(rows) > (100 if rehearsal else _MOST_LINES):
        return [], "The input file has too many lines."
    if rehearsal and file and len(file.content) > MIB:
        return [], "The input file is too large for a test."
    if any(len(row) > _LONGEST_LINE for row in rows):
        return [], "A line is longer than 6 MB."
    try:
        lines = [json.loads(row) for row in rows]
        models = {line["body"]["model"].partition("/sandbox/")[0] for line in lines}
        ids, urls = {line["custom_id"] for line in lines}, {line["url"] for line in lines}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [], "A line is no request: custom_id, method, url and body are needed."
    if len(ids) < len(lines):
        return [], "Duplicate custom_id."
    if urls != {endpoint}:
        return [], "The url of a line differs from the endpoint."
    if len(models) > 1 or (rehearsal and models != {_TEST_MODEL}):
        return [], "All lines must have one model, which the endpoint has."
    return lines, ""


def _answer(line: Json, endpoint: str, now_s: float) -> Json:
    """A line of the output, or of the file of errors."""
    body: Json = line["body"]
    made: Json | Refusal | None
    if endpoint == "/v1/embeddings":
        made = embed(body)
    else:
        made = refusal_for(body)
        if made is None:
            spec = Spec()
            made = chat.completion(chat.answer(body, spec, now_s=now_s), spec)
    if "bad-request" in spec_in_model(str(body.get("model"))):
        made = _refused("bad request")
    status, answer, error = 200, made, None
    if isinstance(made, Refusal):
        status, answer = made.status, made.body()
        error = {"code": made.code, "message": made.message}
    return {
        "id": secrets.token_hex(8),
        "custom_id": line["custom_id"],
        "response": {
            "status_code": status,
            "request_id": secrets.token_hex(8),
            "body": answer,
        },
        "error": error,
    }
