"""Files and batches without a server of their own, in front of the sandbox."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, error_of, running
from tests.kit import uploads

LINE = json.dumps(
    {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "qwen-plus", "messages": [{"role": "user", "content": "hi"}]},
    }
).encode()
BATCH = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}


def json_of(answer: TestResponse) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json or {})


def sent(app: App, *parts: bytes, **options: Any) -> TestResponse:
    data = b"".join(parts) + uploads.END
    return app.client.post("/v1/files", data=data, content_type=uploads.TYPE, **options)


def upload(app: App, content: bytes = LINE, purpose: str = "batch") -> dict[str, Any]:
    answer = sent(app, uploads.field("purpose", purpose), uploads.file(content))
    return json_of(answer)


def asked(app: App, path: str) -> dict[str, Any]:
    return json_of(app.get(path))


# --- files ---------------------------------------------------------------------------------------


def test_a_file_from_its_upload_to_its_end(app: App) -> None:
    made = upload(app)
    address = f"/v1/files/{made['id']}"

    assert asked(app, address) == made
    with app.get(address + "/content") as content:
        assert content.data == LINE
    assert content.headers["content-length"] == str(len(LINE))
    assert app.client.delete(address).json == {"id": made["id"], "object": "file", "deleted": True}
    for gone in (app.get(address), app.get(address + "/content"), app.client.delete(address)):
        assert (gone.status_code, error_of(gone)["code"]) == (404, "not_found")
    assert app.services.admission.in_flight == 0


def test_a_file_that_only_the_host_has_lost(app: App, sandbox: Sandbox) -> None:
    address = "/v1/files/" + upload(app)["id"]
    sandbox.control(faults={"files": "model-not-found"})

    assert app.get(address).status_code == 404
    assert app.get(address + "/content").status_code == 404
    assert app.client.delete(address).status_code == 404
    sandbox.control(faults={})
    assert app.get(address).status_code == 404  # the refused deletion was the end of it here


def test_a_list_of_files(app: App) -> None:
    ids = [upload(app)["id"] for _ in range(3)]

    page = asked(app, "/v1/files?limit=2&order=asc")
    rest = asked(app, f"/v1/files?order=asc&after={ids[1]}")

    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:2], True)
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert asked(app, "/v1/files?purpose=batch_output")["data"] == []
    assert app.get("/v1/files?after=file-of-nobody").status_code == 400


@pytest.mark.parametrize("purpose", ["user_data", "assistants"])
def test_a_purpose_that_hosts_call_otherwise(app: App, purpose: str) -> None:
    answer = sent(app, uploads.field("purpose", purpose), uploads.file(b"a", filename="a.txt"))

    assert answer.status_code == 200
    assert "purpose" in answer.headers["x-qwen-proxy-changed"]
    with running(
        DASHSCOPE_BASE_URL="http://127.0.0.1:1/v1",
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_STRICT="1",
    ) as strict:
        answer = sent(strict, uploads.field("purpose", purpose), uploads.file(b"a"))
    assert (answer.status_code, error_of(answer)["param"]) == (400, "purpose")


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((uploads.file(LINE),), "purpose"),
        ((uploads.field("purpose", "batch"),), "file"),
        ((uploads.field("purpose", "evil"), uploads.file(LINE)), "purpose"),
        ((uploads.file(LINE), uploads.field("purpose", "evil")), "purpose"),
    ],
)
def test_a_form_that_lacks_something_makes_no_file(
    app: App, sandbox: Sandbox, parts: tuple[bytes, ...], param: str
) -> None:
    answer = sent(app, *parts)

    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert asked(app, "/v1/files")["data"] == []
    assert app.services.admission.in_flight == 0


def test_a_purpose_behind_the_file(app: App) -> None:
    answer = sent(app, uploads.file(LINE), uploads.field("purpose", "batch"))

    assert answer.json and answer.json["purpose"] == "batch"


def test_a_declared_length_beyond_the_purpose_is_refused_first(app: App, sandbox: Sandbox) -> None:
    answer = sent(
        app,
        uploads.field("purpose", "file-extract"),
        uploads.file(LINE),
        environ_overrides={"CONTENT_LENGTH": str(400 * 1024**2)},
    )

    assert (answer.status_code, error_of(answer)["code"]) == (413, "file_too_large")
    assert [each for each in sandbox.settle() if each.route == "files"] == []


def test_files_have_a_most(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_wsgi.api.files.files.MOST_OF_OWNER", 1)
    upload(app)

    answer = sent(app, uploads.field("purpose", "batch"), uploads.file(LINE))

    assert (answer.status_code, error_of(answer)["code"]) == (400, "too_many_files")


@pytest.mark.parametrize("fault", ["internal", "lost-answer", "reset", "empty-200"])
def test_an_upload_that_failed_is_told(app: App, sandbox: Sandbox, fault: str) -> None:
    sandbox.control(faults={"files": fault})

    answer = sent(app, uploads.field("purpose", "batch"), uploads.file(LINE))

    assert answer.status_code in (500, 502)
    assert error_of(answer)["message"]
    assert app.services.admission.in_flight == 0


# --- batches -------------------------------------------------------------------------------------


def begin(app: App, content: bytes = LINE) -> dict[str, Any]:
    answer = app.client.post(
        "/v1/batches", json={**BATCH, "input_file_id": upload(app, content)["id"]}
    )
    return json_of(answer)


def ended(app: App, id: str) -> dict[str, Any]:
    for _ in range(20):
        if (batch := asked(app, f"/v1/batches/{id}"))["status"] in ("completed", "cancelled"):
            return batch
    raise AssertionError(batch)


def test_a_batch_from_its_begin_to_its_output(app: App) -> None:
    batch = ended(app, begin(app)["id"])

    with app.get(f"/v1/files/{batch['output_file_id']}/content") as output:
        assert json.loads(output.data)["custom_id"] == "1"
    listed = asked(app, "/v1/batches?limit=1")
    assert ([each["id"] for each in listed["data"]], listed["has_more"]) == ([batch["id"]], False)


def test_a_batch_that_is_cancelled(app: App) -> None:
    id = begin(app)["id"]

    assert json_of(app.client.post(f"/v1/batches/{id}/cancel"))["status"] == "cancelling"
    assert ended(app, id)["status"] == "cancelled"


def test_a_list_of_batches_without_their_host(app: App, sandbox: Sandbox) -> None:
    id = begin(app)["id"]
    sandbox.control(faults={"batches": "internal"})

    assert [each["id"] for each in asked(app, "/v1/batches")["data"]] == [id]
    assert app.get(f"/v1/batches/{id}").status_code == 500


@pytest.mark.parametrize("file", ["file-of-nobody", 7, None])
def test_a_batch_of_no_file(app: App, sandbox: Sandbox, file: object) -> None:
    answer = app.client.post("/v1/batches", json={**BATCH, "input_file_id": file})

    assert answer.status_code in (400, 404)
    assert error_of(answer)["param"] == "input_file_id"
    assert [each for each in sandbox.settle() if each.route == "batches"] == []


def test_a_batch_whose_answer_is_lost_is_not_begun_again(app: App, sandbox: Sandbox) -> None:
    file = upload(app)["id"]
    sandbox.control(faults={"batches": "lost-answer"})

    answer = app.client.post("/v1/batches", json={**BATCH, "input_file_id": file})

    assert "there may be two" in error_of(answer)["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert sum(each.route == "batches" for each in sandbox.settle()) == 1
