"""What the web API reports in place of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol.web.errors import Reported, is_challenge, reported_by


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"success": True, "data": {}}, None),
        ({"choices": [], "detail": "x"}, None),
        ([], None),
        ({"ret": ["SUCCESS"]}, None),
        ({"ret": ["FAIL_SYS_USER_VALIDATE", "RGV587_ERROR::SM"]}, Reported("challenge")),
        (
            {"success": False, "data": {"code": "RateLimited", "details": "today", "num": 2}},
            Reported("rate_limited", "RateLimited: today", 7200.0),
        ),
        (
            {"code": "RateLimited", "detail": "later", "num": True},
            Reported("rate_limited", "RateLimited: later"),
        ),
        (
            {"success": False, "data": {"code": "RateLimited", "num": 1e9}},
            Reported("rate_limited", "RateLimited"),
        ),
        (
            {"success": False, "data": {"code": "unauthorized"}},
            Reported("unauthorized", "unauthorized"),
        ),
        ({"detail": "session_expired"}, Reported("unauthorized", "session_expired")),
        ({"error": "need_login"}, Reported("unauthorized", "need_login")),
        (
            {"success": False, "data": {"code": "Bad_Request", "details": "Internal error!"}},
            Reported("internal_error", "Bad_Request: Internal error!"),
        ),
        ({"success": False}, Reported("refused")),
        ({"success": False, "data": "text"}, Reported("refused")),
        ({"error": {"message": "x" * 999}}, Reported("refused", "x" * 300)),
        (
            {"error": {"code": "x", "details": "RGV587_ERROR"}},
            Reported("challenge", "x: RGV587_ERROR"),
        ),
    ],
    ids=range(16),
)
def test_a_failure_is_recognized(value: Any, expected: Reported | None) -> None:
    assert reported_by(value) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'<script src="/_____tmd_____/punish">', True),
        (b"<html>a page</html>", False),
        (b"x" * 70_000 + b"RGV587", False),
    ],
)
def test_a_page_may_be_the_captcha(body: bytes, expected: bool) -> None:
    assert is_challenge(body) is expected
