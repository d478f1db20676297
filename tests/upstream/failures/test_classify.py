"""A refusal of the upstream becomes what the client should do about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.causes import INPUT_REFUSED
from tests.fakes.upstream import SECRET


def classified(status: int, body: Any, *, headers: dict[str, str] | None = None) -> UpstreamError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify.from_response(
        status, CaseInsensitiveDict(headers or {}), raw, account="dashscope"
    )


def compat(code: str, message: str = "why", type: str | None = None) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": type or code, "param": None, "code": code},
        "request_id": "6f1c2b9e",
    }


def native(code: str, message: str = "why") -> dict[str, Any]:
    return {"request_id": "6f1c2b9e", "code": code, "message": message}


#: Status and code of the upstream, and the status for the client, where the words stay as they are.
TABLE = [
    (400, "invalid_parameter_error", 400),
    (400, "InvalidParameter", 400),
    (400, "InvalidParameter.DataInspection", 400),
    (400, "APIConnectionError", 502),
    (403, "no_such_code", 403),
    (404, "no_such_code", 404),
    (409, "Conflict", 409),
    (413, "request_too_large", 413),
    (422, "unprocessable", 422),
    (430, "Audio.DecoderError", 400),
    (500, "internal_error", 500),
    (500, "InternalError.Algo", 500),
    (500, "RequestTimeOut", 504),
    (502, "bad_gateway", 502),
    (503, "ModelUnavailable", 503),
    (503, "ModelServingError", 503),
    (504, "ResponseTimeout", 504),
    # What our client could misunderstand comes as a fault of the gateway that we are.
    (408, "timeout", 504),
    (418, "teapot", 502),
    (501, "not_implemented", 502),
    (529, "overloaded", 503),
]
TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


@pytest.mark.parametrize(("status", "code", "expected"), TABLE)
def test_a_compatible_error_keeps_its_words_and_its_status_where_that_means_the_same(
    status: int, code: str, expected: int
) -> None:
    error = classified(status, compat(code, "why it failed", type="some_type"))

    assert error.status == expected
    kind = "invalid_request_error" if expected == 400 else "some_type"
    assert error.body() == {
        "error": {"message": "why it failed", "type": kind, "param": None, "code": code}
    }
    assert error.should_retry is (False if code == "teapot" else None)


#: The type of every 400.
OURS = "invalid_request_error"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"x-request-id": "up-1"}, b"{}", "up-1"),
        ({"x-request-id": "up-1"}, b'{"code":"C","message":"m","request_id":"up-2"}', "up-1"),
        ({}, b'{"code":"C","message":"m","request_id":"up-2"}', "up-2"),
        ({}, b'{"error":{"message":"m"},"request_id":"up-2"}', "up-2"),
        ({}, b'{"error":{"message":"m"},"request_id":"up 2\\n"}', ""),
        ({}, b'{"error":{"message":"m"},"request_id":2}', ""),
        ({"x-request-id": "up\n1"}, b"<html>", ""),
        ({}, b"", ""),
    ],
)
def test_the_upstreams_id_of_a_refused_request_is_kept(
    headers: dict[str, str], body: bytes, expected: str
) -> None:
    error = classify.from_response(400, headers, body, account="a")

    assert error.upstream_request_id == expected


@pytest.mark.parametrize(("status", "code", "expected"), TABLE)
def test_a_native_error_is_brought_to_openai_form(status: int, code: str, expected: int) -> None:
    error = classified(status, native(code, "why it failed"))

    assert error.status == expected
    assert error.body() == {
        "error": {
            "message": "why it failed",
            "type": TYPES.get(expected, "server_error"),
            "param": None,
            "code": code,
        }
    }


def test_the_upstreams_words_come_first_and_then_what_they_mean() -> None:
    error = classified(
        400,
        compat("invalid_parameter_error", "Range of input length should be [1, 9]", "t"),
    )

    assert error.body()["error"] == {
        "message": "Range of input length should be [1, 9]. The prompt exceeds this model's "
        "maximum context length: shorten or compact the conversation.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_braces_in_what_the_upstream_says_are_only_braces() -> None:
    error = classified(403, compat("access_denied", "no {said} {} {0} here"))

    assert error.message.startswith("no {said} {} {0} here. Account 'dashscope'")


@pytest.mark.parametrize(
    "framed",
    [
        b"data: %s\n\n",
        b"data:%s",
        b"\n data: %s \r\n\r\n",
        b"data: %s\n\ndata: [DONE]\n\n",
        b"id:1\nevent:error\n:HTTP_STATUS/400\ndata:%s\n\n",
        b": comment\n\ndata: %s\n\n",
    ],
)
@pytest.mark.parametrize("value", [compat("invalid_parameter_error"), native("InvalidParameter")])
def test_an_error_that_is_framed_as_an_event_is_read_all_the_same(
    framed: bytes, value: dict[str, Any]
) -> None:
    """DashScope answers a refused stream so, with HTTP 400."""
    error = classified(400, framed % json.dumps(value).encode())

    assert (error.status, error.message) == (400, "why")
    assert error.code == value.get("code", "invalid_parameter_error")


BAD = "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "message", "code", "type"),
    [
        ({"error": {"message": "m", "code": 400, "type": None}}, "m", "400", BAD),
        ({"error": {"message": "m"}}, "m", None, BAD),
        ({"error": {"code": "c"}}, "without a message", "c", BAD),
        ({"error": {"message": None, "code": "c"}}, "without a message", "c", BAD),
        ({"error": "invalid_grant", "error_description": "d"}, "d", "invalid_grant", BAD),
        ({"error": "it broke"}, "it broke", "it broke", BAD),
        ({"detail": "Not Found"}, "Not Found", None, BAD),
        ({"object": "error", "message": "m", "type": "Bad", "code": 400}, "m", "400", OURS),
        ({"msg": "m", "code": 7}, "m", "7", BAD),
        ([{"error": {"message": "m", "code": 400}}], "m", "400", BAD),
        (compat("c", '{"error": {"message": "m", "code": "d"}}', "t"), "m", "d", OURS),
        (compat("c", "{not json", "t"), "{not json", "c", OURS),
    ],
    ids=str,
)
def test_other_servers_errors_are_understood(
    body: Any, message: str, code: str | None, type: str
) -> None:
    error = classified(400, body)

    assert error.status == 400
    assert message in error.message
    assert (error.code, error.type) == (code, type)


def test_the_param_is_kept_if_it_is_a_name() -> None:
    assert classified(400, {"error": {"message": "m", "param": "tools"}}).param == "tools"
    assert classified(400, {"error": {"message": "m", "param": ["a"]}}).param is None


def test_the_validation_errors_of_fastapi_stay_a_fault_of_the_request() -> None:
    """vLLM and many other OpenAI-compatible servers answer a wrong field so."""
    detail = [{"loc": ["body", "top_p"], "msg": "Input should be a number", "type": "float_type"}]

    error = classified(422, {"detail": detail})

    assert error.status == 422
    assert "Input should be a number" in error.message


REFUSED = [
    (401, compat("invalid_api_key", "Incorrect API key provided. ")),
    (401, compat("invalid_api_key", "invalid access token or token expired")),
    (401, native("InvalidApiKey", "Invalid API-key provided.")),
    (401, {"error": "unauthorized"}),
    (401, {"detail": "NOT AUTHORIZED"}),
    (401, b"data: " + json.dumps(compat("invalid_api_key")).encode() + b"\n\n"),
    (401, b""),
    (401, b"<html>401</html>"),
    (403, compat("invalid api-key", "invalid api-key")),
    (403, native("InvalidApiKey")),
    (403, compat("invalid_api_key")),
]


@pytest.mark.parametrize(("status", "body"), REFUSED, ids=str)
def test_a_refused_account_is_never_blamed_on_the_clients_key(status: int, body: Any) -> None:
    """An SDK raises AuthenticationError on a 401, and its user would change the wrong key."""
    error = classified(status, body)

    assert (error.status, error.code) == (502, "upstream_account_refused")
    assert error.should_retry is False
    assert error.type not in ("authentication_error", "invalid_request_error")
    assert "'dashscope'" in error.message
    assert "Your own key is fine" in error.message
    assert "qwen-proxy status" in error.message
    assert error.failure is not None and error.failure.remedy in error.message


def test_what_the_upstream_said_of_the_account_is_told() -> None:
    error = classified(401, compat("invalid_api_key", "invalid access token or token expired"))

    assert "invalid access token or token expired" in error.message


@pytest.mark.parametrize("status", [401, 403, 400, 500])
def test_a_key_that_the_upstream_quotes_is_masked(status: int) -> None:
    """Some gateways quote the key they refuse; it is the operator's, and the client is not."""
    code = "invalid_api_key" if status in (401, 403) else "x"
    error = classified(status, compat(code, f"Received API Key = {SECRET}, which is not valid"))

    assert SECRET not in error.message
    assert SECRET not in error.upstream_message


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
def test_the_upstream_s_own_message_is_kept_apart_from_ours(status: int) -> None:
    error = classified(status, compat("invalid_api_key", "Its own\n words."))

    assert error.upstream_message == "Its own words."


def test_an_answer_without_a_message_is_described_instead() -> None:
    error = classified(401, b"")

    assert error.upstream_message == "HTTP 401 Unauthorized with an empty body"


HTML = b"<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


@pytest.mark.parametrize("body", [HTML, b"", b"  \n", b"bad request", b"[1]", b'"x"', b"{}", b"{"])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, 502),
        (302, 502),
        (400, 502),
        (403, 502),
        (404, 502),
        (405, 502),
        (409, 502),
        (413, 413),
        (422, 502),
        (429, 429),
        (500, 500),
        (502, 502),
        (503, 503),
        (504, 504),
        (520, 502),
        (529, 503),
    ],
)
def test_a_body_that_says_nothing_becomes_a_json_error(
    status: int, expected: int, body: bytes
) -> None:
    error = classified(status, body, headers={"Content-Type": "text/html; charset=utf-8"})

    assert error.status == expected
    assert error.code == ("rate_limit_exceeded" if status == 429 else f"upstream_http_{status}")
    assert f"HTTP {status}" in error.message
    assert "'dashscope'" in error.message
    assert "<h1>" not in error.message
    assert ("an empty body" in error.message) == (body.strip() == b"")


def test_the_kind_of_a_strange_body_is_told_and_not_the_body() -> None:
    error = classified(503, HTML, headers={"content-type": "text/html; charset=utf-8"})

    assert f"(text/html, {len(HTML)} bytes)" in error.message
    assert "HTTP 503 Service Unavailable" in error.message


@pytest.mark.parametrize("status", [301, 302, 308, 404, 405])
def test_a_wrong_road_is_called_one(status: int) -> None:
    assert "base URL is probably wrong" in classified(status, b"").message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("0", 0.0),
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("86399", 86_399.0),
        ("86400", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("Fri, 21 Nov 2026 05:45:00 GMT", None),
        ("soon", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("name", ["Retry-After", "retry-after"])
def test_retry_after_is_passed_on_when_it_is_a_number_of_seconds(
    name: str, value: str, seconds: float | None
) -> None:
    for body in (compat("limit_requests"), b""):
        error = classified(429, body, headers={name: value})
        # Without a time of the upstream's, a few seconds.
        assert error.retry_after_s == (5.0 if seconds is None else seconds)
        assert error.failure is not None and error.failure.wait_s == seconds


@pytest.mark.parametrize(
    ("frame", "status", "code"),
    [
        (compat("data_inspection_failed")["error"], 400, "content_filter"),
        (native("DataInspectionFailed"), 400, "content_filter"),
        (compat("invalid_parameter_error")["error"], 400, "invalid_parameter_error"),
        (native("InvalidParameter"), 400, "InvalidParameter"),
        ({"type": "invalid_request_error", "message": "m"}, 400, None),
        (compat("limit_requests")["error"], 429, "rate_limit_exceeded"),
        (native("Throttling.RateQuota"), 429, "rate_limit_exceeded"),
        (compat("insufficient_quota")["error"], 429, "insufficient_quota"),
        ({"type": "rate_limit_error", "message": "m"}, 429, "rate_limit_exceeded"),
        ({"code": 429, "message": "m"}, 429, "rate_limit_exceeded"),
        ({"code": None, "status": 429, "message": "m"}, 429, "rate_limit_exceeded"),
        ({"message": "<429> Throttled, sorry"}, 429, "rate_limit_exceeded"),
        ({"code": 400, "message": "m"}, 400, "400"),
        ({"code": "503", "message": "m"}, 503, "503"),
        ({"code": 401, "message": "m"}, 502, "upstream_account_refused"),
        ({"code": 200, "message": "m"}, 502, "200"),
        ({"code": "\u00b2\u00b2\u00b2", "message": "m"}, 502, "\u00b2\u00b2\u00b2"),
        (native("InternalError.Algo"), 502, "InternalError.Algo"),
        ({"message": "m"}, 502, None),
        ({}, 502, None),
        ("it broke", 502, None),
        (["x"], 502, None),
    ],
    ids=str,
)
def test_an_error_frame_at_the_very_start_gets_the_status_of_its_code(
    frame: Any, status: int, code: str | None
) -> None:
    error = classify.from_frame(frame, account="dashscope")

    assert (error.status, error.code) == (status, code)
    assert error.message


@pytest.mark.parametrize("code", ["invalid_api_key", "InvalidApiKey", "invalid api-key"])
def test_an_error_frame_about_the_account_is_told_as_such(code: str) -> None:
    error = classify.from_frame({"code": code, "message": "m"}, account="dashscope")

    assert (error.status, error.code) == (502, "upstream_account_refused")
    assert error.should_retry is False


def test_a_success_without_an_answer_is_a_bad_gateway() -> None:
    error = classify.no_answer({"content-type": "text/html"}, HTML, account="dashscope")

    assert (error.status, error.code) == (502, "upstream_http_200")
    assert "HTTP 200 OK" in error.message


def test_a_long_error_body_that_was_cut_is_still_an_error() -> None:
    cut = json.dumps(compat("x", "y" * 100_000)).encode()[:65_536]

    assert classified(400, cut).status == 502


def test_a_captcha_instead_of_an_answer_is_called_one() -> None:
    page = b'<!doctypehtml><meta name="aliyun_waf_aa" content="x"><div id="captcha-element"></div>'

    error = classify.no_answer({"content-type": "text/html"}, page, account="dashscope")

    assert (error.status, error.code) == (502, "upstream_challenge")
    assert error.should_retry is False
    assert "neither solves nor evades" in error.message
    assert "operator of this proxy" in error.message
    assert error.failure is not None and error.failure.elsewhere


class TestAnErrorAsAnAnswer:
    """`finish_reason: error_finish`: the content is the text of an error, inside a 200."""

    @pytest.mark.parametrize(
        ("text", "cause", "message"),
        [
            (
                'Throttling.RateQuota: {"code":"Throttling.RateQuota","message":"Too fast."}',
                "rate_limited",
                "Too fast.",
            ),
            (
                'id:1\nevent:error\n:HTTP_STATUS/429\ndata:{"request_id":"6f","code":'
                '"Throttling.AllocationQuota","message":"Allocated quota exceeded"}\n',
                "tokens_limited",
                "Allocated quota exceeded.",
            ),
            ('{"error":{"code":"429","message":"Throttling: TPM(9/8)"}}', "tokens_limited", "TPM"),
            (
                'data: {"error":{"code":"1302","message":"Slow down."}}',
                "rate_limited",
                "Slow down.",
            ),
            ("Throttling: TPM(10680324/10000000)", "tokens_limited", "Throttling: TPM("),
            ("Throttling.BurstRate: too steep", "burst_limited", "too steep"),
            ("event:error :HTTP_STATUS/429 who knows", "rate_limited", "who knows"),
            ("<503> not now", "overloaded", "not now"),
            ("<400> InternalError.Algo.InvalidParameter: wrong", "bad_request", "wrong"),
            ("hour allocated quota exceeded", "plan_window_spent", "hour allocated"),
            ("Something went wrong {here}", "internal_error", "went wrong {here}"),
            ("", "internal_error", "without a message"),
        ],
    )
    def test_its_cause_is_found(self, text: str, cause: str, message: str) -> None:
        error = classify.from_error_finish(text, account="dashscope", family=Family.DASHSCOPE)

        assert error.failure is not None and error.failure.cause == cause
        assert message in error.message

    def test_unknown_words_are_an_error_all_the_same(self) -> None:
        error = classify.from_error_finish("oh no", account="dashscope")

        assert (error.status, error.code, error.message) == (502, "error_finish", "oh no")

    def test_a_long_text_is_cut(self) -> None:
        error = classify.from_error_finish("x" * 100_000, account="dashscope")

        assert len(error.message) < 3000


#: About a picture, and not about the model.
OTHER_REFUSALS = [
    (400, "Failed to download the image from https://example.com/a.png"),
    (400, "The image length and width do not meet the model restrictions."),
    (400, "Unsupported image format: image/tiff"),
    (400, "This model does not support image size above 10 MB."),
    (400, "The model does not support video generation."),
]


@pytest.mark.parametrize(("status", "message"), OTHER_REFUSALS)
def test_what_is_wrong_with_one_picture_says_nothing_of_the_model(
    status: int, message: str
) -> None:
    error = classified(status, {"error": {"message": message, "code": "x"}})

    assert error.failure is not None
    assert error.failure.cause != INPUT_REFUSED
