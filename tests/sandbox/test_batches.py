"""The look-alike's batches: what it refuses; tests/server/test_batches.py drives the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.sandbox import batches, files
from qwen_wsgi.sandbox.errors import Refusal

URL = "/v1/chat/completions"


def line(number: int = 1, **changes: Any) -> dict[str, Any]:
    body = {"model": "qwen-plus", "messages": [{"role": "user", "content": "Hi"}]}
    return {"custom_id": str(number), "method": "POST", "url": URL, "body": body, **changes}


def run(content: bytes, endpoint: str = URL) -> dict[str, Any]:
    """A batch in its end."""
    storage = files.Storage(lambda: 1.0)
    made = batches.Batches(lambda: 1.0, storage)
    file = storage.add("a", "batch", content)
    assert isinstance(file, files.File)
    wanted = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": "1d"}
    begun = made.create(wanted)
    assert isinstance(begun, dict)
    for _ in range(4):
        looked = made.look(begun["id"])
    assert isinstance(looked, dict)
    return looked


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"no json\n",
        json.dumps({"custom_id": "1"}).encode(),
        b"\n".join(json.dumps(line()).encode() for _ in range(2)),
        json.dumps(line(url="/v1/embeddings")).encode(),
        b"x" * (7 << 20),
        b"{}\n" * 50_001,
    ],
)
def test_a_wrong_file_fails(content: bytes) -> None:
    batch = run(content)

    assert (batch["status"], batch["output_file_id"]) == ("failed", None)
    assert batch["errors"]["data"][0]["message"]


def test_the_rehearsal_takes_its_own_model_and_few_lines() -> None:
    url = "/v1/chat/ds-test"
    body = {"model": "batch-test-model", "messages": [{"role": "user", "content": "Hi"}]}

    def content(count: int, **changes: Any) -> bytes:
        rows = (line(number, url=url, **changes) for number in range(count))
        return b"\n".join(json.dumps(row).encode() for row in rows)

    assert run(content(100, body=body), url)["status"] == "completed"
    assert run(content(101, body=body), url)["status"] == "failed"
    assert run(content(1), url)["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"input_file_id": "file-batch-0"}, 404),
        ({"endpoint": "/v1/x"}, 400),
        ({"completion_window": "23h"}, 400),
        ({"completion_window": "soon"}, 400),
    ],
)
def test_wrong_requests(change: dict[str, str], status: int) -> None:
    storage = files.Storage(lambda: 1.0)
    file = storage.add("a", "batch", b"{}")
    assert isinstance(file, files.File)
    wanted = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h", **change}

    refusal = batches.Batches(lambda: 1.0, storage).create(wanted)

    assert isinstance(refusal, Refusal) and refusal.status == status
