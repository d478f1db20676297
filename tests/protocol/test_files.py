"""Files and batches in OpenAI's form, whatever the host leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Batch, FileObject

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol import files
from qwen_wsgi.protocol.json_object import JsonObject, compact


@pytest.mark.parametrize("value", [{}, {"bytes": "7", "created_at": None, "filename": 3}])
def test_a_file_has_what_clients_read(value: dict[str, Any]) -> None:
    made = files.file_object({"id": "file-1", **value})

    FileObject.model_validate({**made, "purpose": "batch"}, strict=True)
    assert made["status"] == "processed"


@pytest.mark.parametrize("value", [{}, {"request_counts": None, "output_file_id": "../x"}])
def test_a_batch_has_what_clients_read(value: dict[str, Any]) -> None:
    made = files.batch_object({"id": "b", "status": "validating", **value})

    Batch.model_validate(made, strict=True)
    assert made["output_file_id"] is None


@pytest.mark.parametrize("id", [None, "", "a/b", "a b", "x" * 129, "a\r\nb", 7])
def test_an_id_is_fit_for_a_path(id: object) -> None:
    for make in (files.file_object, files.batch_object):
        with pytest.raises(UpstreamError):
            make({"id": id})


@pytest.mark.parametrize("window", ["24h", "336h", "1d", "14d", "100h"])
def test_windows_of_model_studio(window: str) -> None:
    wanted = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": window}

    assert files.batch_request(JsonObject(compact(wanted).encode())) == wanted


@pytest.mark.parametrize("window", ["23h", "337h", "0d", "15d", "24", "h", "-1d", "99999h", "24H"])
def test_other_windows_are_refused(window: str) -> None:
    wanted = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": window}

    with pytest.raises(BadRequest, match="from 24h to 336h"):
        files.batch_request(JsonObject(compact(wanted).encode()))


def test_purposes() -> None:
    assert files.purpose_of("batch") == ("batch", ())
    assert files.purpose_of("assistants") == ("file-extract", ("purpose:file-extract",))
    for purpose in ("vision", "evals", "x"):
        with pytest.raises(BadRequest):
            files.purpose_of(purpose)


def test_files_that_messages_name() -> None:
    messages = [
        {"role": "system", "content": "fileid://file-fe-1,fileid://file-fe-2"},
        {"role": "user", "content": [{"type": "text", "text": "FileID://a.b_c and fileid://"}]},
        {"role": "user", "content": "fileid://file-fe-1"},
    ]

    assert sorted(files.ids_in(messages)) == ["a.b_c", "file-fe-1", "file-fe-2"]
    assert files.ids_in(None) == []
