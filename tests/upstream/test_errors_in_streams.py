"""An error that an upstream tells inside a stream is understood once, for all dialects."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.messages import errors
from qwen_wsgi.protocol.responses import mapping
from qwen_wsgi.upstream.failures import classify

THROTTLED = "rate_limit_error", "rate_limit_exceeded"
SPENT = "rate_limit_error", "insufficient_quota"
TOO_LONG = "invalid_request_error", "context_length_exceeded"
REFUSED = "invalid_request_error", "invalid_prompt"
FAULT = "api_error", "server_error"


@pytest.mark.parametrize(
    ("error", "family", "expected"),
    [
        ({"code": "limit_requests", "message": "slow"}, Family.DASHSCOPE, THROTTLED),
        ({"code": "Throttling.RateQuota", "message": "slow"}, Family.DASHSCOPE, THROTTLED),
        ({"code": "insufficient_quota", "message": "more"}, Family.DASHSCOPE, THROTTLED),
        ({"code": "insufficient_quota", "message": "more"}, Family.OTHER, SPENT),
        ({"message": "month allocated quota exceeded"}, Family.CODING_PLAN, SPENT),
        ({"message": "Range of input length should be [1, 5]"}, Family.DASHSCOPE, TOO_LONG),
        ({"code": "data_inspection_failed", "message": "m"}, Family.DASHSCOPE, REFUSED),
        ({"code": "ModelUnavailable"}, Family.DASHSCOPE, ("overloaded_error", "server_error")),
        ({"code": "stream_timeout"}, Family.DASHSCOPE, ("timeout_error", "server_error")),
        ({"type": "overloaded_error"}, Family.OTHER, ("overloaded_error", "server_error")),
        ({"code": "internal_error", "message": "m"}, Family.OTHER, FAULT),
        ({"code": 17, "type": [], "message": {}}, Family.OTHER, FAULT),
        ("Too many requests", Family.OTHER, THROTTLED),
        ("words", Family.OTHER, FAULT),
        ([1], Family.OTHER, FAULT),
        (False, Family.OTHER, FAULT),
        ({}, Family.OTHER, FAULT),
    ],
    ids=str,
)
def test_what_clients_of_the_other_dialects_are_told(
    error: Any, family: Family, expected: tuple[str, str]
) -> None:
    understood = classify.from_frame(error, account="a", family=family)

    anthropic = errors.body(understood, request_id="req_1")
    openai = mapping.error(understood)

    assert (anthropic["error"]["type"], openai["code"]) == expected
    assert anthropic["error"]["message"]
    assert openai["message"]


@pytest.mark.parametrize("text", ["Throttling.RateQuota: slow down", "Throttling: TPM(9/5)"])
def test_throttling_as_the_text_of_an_answer(text: str) -> None:
    understood = classify.from_error_finish(text, account="a", family=Family.DASHSCOPE)

    assert errors.type_of(understood) == "rate_limit_error"
    assert mapping.error(understood)["code"] == "rate_limit_exceeded"
