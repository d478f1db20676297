"""The look-alike's `/completions`: old coder models that fill a gap."""

from __future__ import annotations

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import post

GAP = "<|fim_prefix|>def f():\n<|fim_suffix|>return 1<|fim_middle|>"


def test_a_gap_is_filled(sandbox: Sandbox) -> None:
    answer = post(
        sandbox, "completions", {"model": "qwen2.5-coder-7b-instruct", "prompt": GAP, "n": 1}
    )

    body = answer.json()
    assert answer.status == 200
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert choice == {
        "text": "[sandbox] 9 before, 8 behind",
        "index": 0,
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    (record,) = sandbox.settle()
    assert (record.route, record.model) == ("completions", "qwen2.5-coder-7b-instruct")


def test_a_prompt_without_a_gap_is_gone_on_with(sandbox: Sandbox) -> None:
    answer = post(sandbox, "completions", {"model": "qwen-coder-turbo", "prompt": "Once"})

    assert answer.json()["choices"][0]["text"] == "[sandbox] 4 before"


@pytest.mark.parametrize("model", ["qwen3.7-plus", "qwen2.5-coder-3b-instruct", ""])
def test_other_models_are_not_known_there(sandbox: Sandbox, model: str) -> None:
    answer = post(sandbox, "completions", {"model": model, "prompt": GAP})

    assert (answer.status, answer.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": ["x"]}, {"prompt": "x", "suffix": "y"}, {"prompt": "x", "stream": True}],
    ids=str,
)
def test_what_it_does_not_know_is_refused(sandbox: Sandbox, body: dict[str, object]) -> None:
    answer = post(sandbox, "completions", {"model": "qwen-coder-turbo", **body})

    assert (answer.status, answer.code) == (400, "InvalidParameter")


def test_faults_can_be_asked_for(sandbox: Sandbox) -> None:
    body = {"model": "qwen-coder-turbo", "prompt": GAP}

    assert post(sandbox, "completions", body, "empty-404").status == 404
    assert post(sandbox, "completions", body, authorization="Basic x").status == 401
