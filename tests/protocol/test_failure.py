"""Errors that come as text are told with their code."""

from __future__ import annotations

import pytest

from qwen_wsgi.protocol.failure import error_in


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('Throttling.RateQuota: {"code":"Throttling.X","message":"m"}', "Throttling.X"),
        ('{"error":{"code":"limit_requests","message":"m"}}', "limit_requests"),
        ('data: {"error":{"type":"rate_limit_error","message":"m"}}\n\n', "rate_limit_error"),
        ("Throttling: TPM(10680324/10000000)", "Throttling"),
        ("Throttling.AllocationQuota: quota {exceeded}", "Throttling.AllocationQuota"),
        ('id:1\nevent:error\n:HTTP_STATUS/429\ndata:{"code":"C","message":"m"}', "C"),
        ('{"code":429,"message":"m"}', "429"),
        ('{"error":"busy"}', "error_finish"),
        ("Something broke", "error_finish"),
        ("{", "error_finish"),
        ('{"a":' * 5000, "error_finish"),
        ("", "error_finish"),
    ],
)
def test_the_code_is_found_in_the_text(text: str, code: str) -> None:
    error = error_in(text)

    assert error["code"] == code
    assert error["message"] == text.strip() or not text
    assert error["message"]
    assert (error["type"], error["param"]) == ("upstream_error", None)
