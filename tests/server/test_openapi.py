"""A running proxy answers as its description says: each endpoint once, and whatever schemathesis
makes up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from qwen_wsgi.api.openapi import document
from qwen_wsgi.api.openapi.operations import Operation
from qwen_wsgi.sandbox import Sandbox
from tests.kit.described import check_described
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

CLIENT_KEY: Final = secret("described")
ADMIN_KEY: Final = secret("describing")

#: How long requests are made up. The run begins with one of each kind.
BUDGET_S: Final = 20


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy of its own in front of a sandbox of its own: what is made up here stays here."""
    with Sandbox() as sandbox:
        running = start(
            tmp_path_factory.mktemp("described"),
            {
                "DASHSCOPE_BASE_URL": sandbox.base_url,
                "DASHSCOPE_API_KEY": UPSTREAM_KEY,
                "QWEN_PROXY_API_KEYS": CLIENT_KEY,
                "QWEN_PROXY_ADMIN_KEYS": ADMIN_KEY,
                "QWEN_PROXY_IDLE_TIMEOUT": "2",
                "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "5",
            },
        )
        yield running
        running.stop()


class Asking:
    """Asks the proxy, and holds each answer to the description."""

    def __init__(self, proxy: Proxy, key: str = CLIENT_KEY) -> None:
        self._origin = proxy.origin
        self._key = key

    def __call__(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        answer = requests.request(
            method,
            self._origin + path,
            headers={**headers, **options.pop("headers", {})},
            timeout=20,
            **options,
        )
        sent = {name.lower(): value for name, value in answer.headers.items()}
        check_described(method, path, answer.status_code, sent, answer.content)
        return answer


def names(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


@pytest.mark.parametrize(
    "operation", [each for each in document.OPERATIONS if each.example is not None], ids=names
)
def test_the_example_is_answered(described: Proxy, operation: Operation) -> None:
    key = ADMIN_KEY if operation.path.startswith("/admin") else CLIENT_KEY
    answer = Asking(described, key)(operation.method, operation.path, json=operation.example)

    assert answer.status_code == operation.answers[0].status, answer.text


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_the_example_is_streamed(described: Proxy, path: str) -> None:
    example = next(
        each.example
        for each in document.OPERATIONS
        if (each.method, each.path) == ("POST", path) and each.example is not None
    )
    answer = Asking(described)("POST", path, json={**example, "stream": True})

    assert answer.status_code == 200
    assert answer.content.count(b"data: ") > 2


@pytest.mark.parametrize(
    "key",
    ["", "sk-wrong-key-0123456789", CLIENT_KEY, ADMIN_KEY],
    ids=["nobody", "a stranger", "a client", "an admin"],
)
def test_whoever_asks_for_whatever(described: Proxy, key: str) -> None:
    """Each endpoint without a body, and about what is not there."""
    asking = Asking(described, key)
    statuses: dict[str, int] = {}
    for each in document.OPERATIONS:
        path = each.path.replace("{id}", "none_such").replace("{wanted}", "nobody")
        path = path.replace("{name}", "page.css")
        statuses[names(each)] = asking(each.method, path).status_code

    assert 500 not in statuses.values()
    if key in ("", "sk-wrong-key-0123456789"):
        open_to_all = {names(each) for each in document.OPERATIONS if each.access.value == "open"}
        # Metrics are for this machine, too.
        assert {name for name, status in statuses.items() if status == 200} == open_to_all | {
            "GET /metrics"
        }
    if key == CLIENT_KEY:
        admin = {status for name, status in statuses.items() if "/admin/" in name}
        assert admin == {403}


def test_what_is_made_is_found_again(described: Proxy) -> None:
    asking = Asking(described)
    spoken = {"model": "qwen3.7-plus", "input": "Say hello."}
    response = asking("POST", "/v1/responses", json=spoken).json()["id"]
    for path in (f"/v1/responses/{response}", f"/v1/responses/{response}/input_items"):
        assert asking("GET", path).status_code == 200
    assert asking("POST", f"/v1/responses/{response}/cancel").status_code == 400
    assert asking("DELETE", f"/v1/responses/{response}").status_code == 200

    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    file = asking(
        "POST",
        "/v1/files",
        files={"file": ("a.jsonl", json.dumps(line))},
        data={"purpose": "batch"},
    ).json()["id"]
    wanted = {
        "input_file_id": file,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = asking("POST", "/v1/batches", json=wanted).json()["id"]
    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content", f"/v1/batches/{batch}"):
        assert asking("GET", path).status_code == 200
    for path in ("/v1/files", "/v1/batches"):
        assert asking("GET", path).json()["data"]
    assert asking("POST", f"/v1/batches/{batch}/cancel").status_code in (200, 400)  # it has ended
    assert asking("DELETE", f"/v1/files/{file}").status_code == 200

    wanted = {"model": "wan2.6-t2v", "prompt": "A boat at sea"}
    video = asking("POST", "/v1/videos", json=wanted).json()["id"]
    for path in ("/v1/videos", f"/v1/videos/{video}", f"/v1/videos/generations/{video}"):
        assert asking("GET", path).status_code == 200
    assert asking("DELETE", f"/v1/videos/{video}").status_code == 200


def test_models_in_each_form(described: Proxy) -> None:
    asking = Asking(described)
    anthropic = {"anthropic-version": "2023-06-01"}
    for headers in ({}, anthropic):
        first = asking("GET", "/v1/models", headers=headers).json()["data"][0]["id"]
        assert asking("GET", f"/v1/models/{first}", headers=headers).status_code == 200


def test_keys_and_usage(described: Proxy) -> None:
    asking = Asking(described, ADMIN_KEY)
    made = asking("POST", "/admin/v1/keys", json={"name": "berta", "rpm": 5, "models": ["qwen*"]})
    assert made.status_code == 201
    assert asking("POST", "/admin/v1/keys", json={"name": "berta"}).status_code == 409
    assert asking("POST", "/admin/v1/keys", json={"name": "carl", "rpm": -1}).status_code == 400
    limited = Asking(described, made.json()["key"])
    hello = [{"role": "user", "content": "Hello"}]
    chat = {"model": "qwen3.7-plus", "messages": hello}
    assert (
        "x-ratelimit-limit-requests" in limited("POST", "/v1/chat/completions", json=chat).headers
    )
    chat["model"] = "gpt-5"
    assert limited("POST", "/v1/chat/completions", json=chat).status_code in (403, 404)
    assert limited("GET", "/v1/usage").json()["limits"]
    assert asking("PATCH", "/admin/v1/keys/berta", json={"rpm": None}).status_code == 200
    assert asking("POST", "/admin/v1/keys/berta/rotate", json={"grace": "1h"}).status_code == 200
    assert asking("DELETE", "/admin/v1/keys/berta").status_code == 200
    for path in ("/admin/v1/keys", "/admin/v1/accounts", "/admin/v1/calls", "/admin/v1/usage"):
        assert asking("GET", path).status_code == 200
    assert asking("GET", "/status").status_code == 200


@pytest.mark.skipif(sys.version_info < (3, 13), reason="schemathesis is for the newest Python")
@pytest.mark.timeout(120)
def test_requests_that_are_made_up_get_documented_answers(described: Proxy, tmp_path: Path) -> None:
    """DELETE and what is an admin's are left out: they would take away what others have made."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run"),
        described.origin + "/openapi.json",
        *("--header", f"Authorization: Bearer {CLIENT_KEY}"),
        "--checks=status_code_conformance,content_type_conformance,"
        "response_headers_conformance,response_schema_conformance",
        *("--exclude-method", "DELETE", "--exclude-path-regex", "^/admin/"),
        # The same requests each time, so that a commit passes or fails for good.
        *("--seed", "1"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "10"),
        *(f"--max-time={BUDGET_S}", "--continue-on-failure", "--no-shrink", "--no-color"),
        "--generation-deterministic",
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90
    )

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    calls = described.call_lines()
    assert len(calls) > 100
    assert [call for call in calls if call.get("status") == 500] == []
