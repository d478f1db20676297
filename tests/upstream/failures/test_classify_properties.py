"""Whatever an upstream answers: an error that can be sent, and nothing that must not be told."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import Scope, UpstreamError
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.causes import CAUSES
from tests.kit.properties import examples
from tests.kit.secrets import core, secret

KEY = secret("quoted")
TOKEN = "eyJ" + "hbGciOiJIUzI1NiJ9" * 3

STATUSES = st.integers(100, 599) | st.sampled_from([200, 400, 401, 403, 404, 429, 500, 503])
FAMILIES = st.sampled_from(list(Family))
WORDS = st.sampled_from(
    [
        "insufficient_quota",
        "Throttling.AllocationQuota",
        "invalid_api_key",
        "Arrearage",
        "quota exceeded reset at 2026-01-01 00:00:00 ",
        "try again in 9999999 hours",
        "Range of input length should be [1, 9]",
        "model x is not supported",
        "<400> ",
        "HTTP_STATUS/429",
        "{said} {why}",
        "aliyun_waf",
        "\ud800",
    ]
)
TEXTS = st.text(max_size=40) | WORDS | st.lists(WORDS, max_size=4).map(" ".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ERRORS = st.fixed_dictionaries(
    {},
    optional={
        name: TEXTS | VALUES for name in ("message", "code", "type", "param", "status", "detail")
    },
)
BODIES = (
    st.binary(max_size=200)
    | ERRORS.map(lambda error: json.dumps({"error": error}).encode())
    | ERRORS.map(lambda error: json.dumps(error).encode())
    | ERRORS.map(lambda error: b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    | VALUES.map(lambda value: json.dumps(value).encode())
    | TEXTS.map(lambda text: text.encode(errors="surrogatepass"))
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(max_size=40)
        | st.sampled_from(["7", "1e999", "Fri, 20 Nov 2026 10:00:00 GMT"])
        for name in ("retry-after", "retry-after-ms", "date", "content-type")
    },
)
NOWS = st.none() | st.floats(0, 4e9)


def check(error: UpstreamError) -> None:
    assert 400 <= error.status <= 599 and error.status != 401
    assert error.message and error.type
    fields = error.body()["error"]
    assert all(value is None or isinstance(value, str) for value in fields.values())
    assert json.loads(compact(error.body()).encode())["error"].keys() == fields.keys()
    assert error.retry_after_s is None or 0 <= error.retry_after_s <= 86_400
    failure = error.failure
    assert failure is not None and failure.cause in CAUSES
    assert failure.wait_s is None or 0 <= failure.wait_s <= 86_400
    assert failure.wait_s is None or failure.scope is not Scope.REQUEST
    if error.code == "upstream_account_refused":
        assert error.should_retry is False and error.status == 502


@examples(400)
@given(STATUSES, HEADERS, BODIES, FAMILIES, NOWS)
def test_any_answer_becomes_an_error(
    status: int, headers: dict[str, str], body: bytes, family: Family, now: float | None
) -> None:
    check(classify.from_response(status, headers, body, account="a{b}", family=family, now=now))
    check(classify.no_answer(headers, body, account="a", family=family, now=now))


@examples(200)
@given(VALUES | ERRORS, TEXTS, FAMILIES, NOWS)
def test_any_frame_and_any_text_become_an_error(
    frame: Any, text: str, family: Family, now: float | None
) -> None:
    check(classify.from_frame(frame, account="a", family=family, now=now))
    check(classify.from_error_finish(text, account="a", family=family, now=now))


#: What may stand around a key; letters and digits would make it another word.
AROUND = st.text(st.characters(exclude_categories=["L", "N", "Cs"]), max_size=5)


@examples(200)
@given(
    STATUSES,
    FAMILIES,
    st.sampled_from(
        ["message", "code", "type", "param", "detail", "page", "error", "content-type"]
    ),
    st.sampled_from([KEY, TOKEN, "Bearer " + "Zz9" * 12]),
    AROUND,
    AROUND,
)
def test_no_key_is_told(
    status: int, family: Family, place: str, key: str, before: str, after: str
) -> None:
    """Some gateways quote the key that they refuse, and not only in the message."""
    quoted = before + key + after
    error = {"message": "m", "code": "c", "type": "t", "param": "p", place: quoted}
    headers = {"content-type": quoted if place == "content-type" else "text/html"}
    body = json.dumps({"error": error}).encode()
    if place in ("page", "content-type"):
        body = quoted.encode()
    elif place in ("error", "detail"):
        body = json.dumps({place: quoted}).encode()

    answers = [
        classify.from_response(status, headers, body, account="a", family=family),
        classify.from_frame(error, account="a", family=family),
        classify.from_frame(quoted, account="a", family=family),
        classify.from_error_finish(quoted, account="a", family=family),
        classify.no_answer(headers, body, account="a", family=family),
    ]

    for answer in answers:
        assert core(key) not in compact(answer.body())
        assert answer.failure is not None and key not in repr(answer.failure)


@pytest.mark.parametrize(
    "words",
    [
        "quota exceeded ",
        "exceeded the weekly ",
        "request too large for 5 hour quota ",
        "input token count ",
        "model x ",
        "try again in 1s 1s 1s 1s ",
        "reset at 2026-01-01 ",
        "1.1.1.1",
        "A.b.c.",
        "sk-",
        "[",
        '{"a":',
    ],
)
def test_a_long_text_takes_no_long_time(words: str) -> None:
    """A worker serves others meanwhile. 10 ms were measured."""
    text = (words * 60_000)[:60_000]
    started = time.process_time()

    check(classify.from_frame({"message": text}, account="a", now=1.8e9))
    check(classify.from_error_finish(text, account="a"))
    check(classify.from_response(429, {}, text.encode(), account="a"))

    assert time.process_time() - started < 1
