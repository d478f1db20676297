"""The look-alike's files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import KEY, Answer, call

FILES = "/compatible-mode/v1/files"


def upload(
    sandbox: Sandbox, purpose: str = "batch", content: bytes = b"{}", spec: str = ""
) -> Answer:
    body = (
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--b\r\n'
        'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    ).encode()
    headers = {"Content-Type": "multipart/form-data; boundary=b", "x-sandbox": spec}
    return ask(sandbox, "POST", "", body + content + b"\r\n--b--\r\n", headers)


def ask(
    sandbox: Sandbox,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Answer:
    sent = {"Authorization": f"Bearer {KEY}", **(headers or {})}
    return call(sandbox, method, FILES + path, body, sent)


def test_a_file_lives_until_it_is_deleted(sandbox: Sandbox) -> None:
    made = upload(sandbox).json()
    assert made["id"].startswith("file-batch-") and made["bytes"] == 2

    assert ask(sandbox, "GET", f"/{made['id']}").json() == made
    assert ask(sandbox, "GET", f"/{made['id']}/content").body == b"{}"
    assert [each["id"] for each in ask(sandbox, "GET", "").json()["data"]] == [made["id"]]
    assert ask(sandbox, "DELETE", f"/{made['id']}").json()["deleted"] is True
    assert ask(sandbox, "GET", f"/{made['id']}").status == 404
    assert ask(sandbox, "PATCH", "").status == 404


def test_a_list_has_pages_and_purposes(sandbox: Sandbox) -> None:
    ids = [upload(sandbox, purpose).json()["id"] for purpose in ("batch", "file-extract", "batch")]

    def listed(query: str) -> Any:
        return [each["id"] for each in ask(sandbox, "GET", query).json()["data"]]

    assert listed("?purpose=batch") == [ids[2], ids[0]]
    assert listed(f"?after={ids[2]}&limit=1") == [ids[1]]
    assert ask(sandbox, "GET", "?limit=1").json()["has_more"] is True


@pytest.mark.parametrize(
    ("purpose", "content"),
    [("user_data", b"x"), ("batch", b""), ("file-extract", b"x" * (151 << 20))],
)
def test_what_the_real_one_refuses(sandbox: Sandbox, purpose: str, content: bytes) -> None:
    answer = upload(sandbox, purpose, content)

    assert (answer.status, answer.code) == (400, "invalid_parameter_error")


def test_faults_of_uploads(sandbox: Sandbox) -> None:
    with pytest.raises(ConnectionError):
        upload(sandbox, spec="lost-answer")
    assert len(ask(sandbox, "GET", "").json()["data"]) == 1
    sandbox.control(faults={"files": "early, too-large"})
    assert upload(sandbox).status == 413
    sandbox.control(faults={"files": "slow-body=0.01"})
    assert upload(sandbox, content=b"x" * 300_000).json()["bytes"] == 300_000
    assert json.dumps(sandbox.state())
