"""The look-alike's `/api/v1/tokenizer`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import KEY, call


def post(sandbox: Sandbox, body: Any, spec: str = "") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {KEY}", "x-sandbox": spec}
    answer = call(sandbox, "POST", "/api/v1/tokenizer", json.dumps(body).encode(), headers)
    return answer.status, answer.json() if answer.body else None


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({"prompt": "12345678"}, 6),
        ({"messages": [{"role": "user", "content": "1234"}]}, 5),
        ({"messages": [{"role": r, "content": "1234"} for r in ("system", "user", "tool")]}, 15),
    ],
    ids=str,
)
def test_tokens_are_counted(sandbox: Sandbox, given: Any, tokens: int) -> None:
    status, body = post(sandbox, {"model": "qwen-plus", "input": given})

    assert status == 200
    assert body["usage"] == {"input_tokens": tokens}
    assert len(body["output"]["token_ids"]) == len(body["output"]["tokens"]) == tokens
    (record,) = sandbox.settle()
    assert (record.route, record.model) == ("tokenizer", "qwen-plus")


@pytest.mark.parametrize(
    "given",
    [None, {}, {"messages": []}, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}],
    ids=str,
)
def test_what_has_no_text_is_refused(sandbox: Sandbox, given: Any) -> None:
    status, body = post(sandbox, {"model": "qwen-plus", "input": given})

    assert (status, body["code"]) == (400, "InvalidParameter")


def test_faults_can_be_asked_for(sandbox: Sandbox) -> None:
    body = {"model": "qwen-plus", "input": {"prompt": "x"}}

    assert post(sandbox, body, "empty-404") == (404, None)
    sandbox.control(faults={"tokenizer": "internal"})
    assert post(sandbox, body)[0] == 500
