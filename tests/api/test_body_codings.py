"""Bodies with a content coding: gzip is decoded within bounds, others are refused."""

from __future__ import annotations

import gzip
import io
import json
import random
from typing import Any

import pytest

from qwen_wsgi.api.body import read_json
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.json_object import JsonObject
from tests.api.apps import HELLO, in_front_of
from tests.fakes.raw_server import whole
from tests.fakes.upstream import settings_of

TEXT = json.dumps(HELLO).encode()
LIMIT = 1_000_000


def read(body: bytes, coding: str | None, max_bytes: int = LIMIT) -> JsonObject:
    environ: dict[str, Any] = {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
    if coding is not None:
        environ["HTTP_CONTENT_ENCODING"] = coding
    return read_json(environ, settings_of(QWEN_PROXY_MAX_BODY=max_bytes), take=lambda count: None)


def refused(body: bytes, coding: str, max_bytes: int = LIMIT) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, coding, max_bytes)
    return caught.value


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", " GZIP "])
def test_gzip_is_decoded(coding: str) -> None:
    assert read(gzip.compress(TEXT), coding)["messages"] == HELLO["messages"]


@pytest.mark.parametrize("coding", [None, "", "identity"])
def test_no_coding_is_none(coding: str | None) -> None:
    assert read(TEXT, coding)["model"] == "m"


@pytest.mark.parametrize("coding", ["zstd", "br", "deflate", "gzip, gzip"])
def test_another_coding_is_refused_and_what_is_accepted_is_named(coding: str) -> None:
    error = refused(TEXT, coding)

    assert (error.status, error.code) == (415, "unsupported_content_encoding")
    assert "gzip" in error.message


@pytest.mark.parametrize(
    "body", [TEXT, gzip.compress(TEXT)[:-1], gzip.compress(TEXT) * 2, b""], ids=len
)
def test_what_is_no_whole_gzip_is_refused(body: bytes) -> None:
    assert refused(body, "gzip").status == 400


def test_the_decoded_body_has_the_limit_of_a_body() -> None:
    noise = random.Random(7).randbytes(2000).hex()
    body = gzip.compress(json.dumps({"a": noise}).encode())

    assert read(body, "gzip", 4100)["a"] == noise
    error = refused(body, "gzip", 4000)
    assert (error.status, error.code) == (413, "request_too_large")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = gzip.compress(b'{"a":"' + b"x" * 50_000_000 + b'"}')

    error = refused(bomb, "gzip", 100_000_000)

    assert (error.status, error.code) == (413, "request_too_large")
    assert "100 times" in error.message


def test_a_call_with_gzip_is_answered() -> None:
    answer = {"id": "c", "choices": [{"index": 0, "message": {"content": "hi"}}]}
    with in_front_of(whole(b'{"data":[{"id":"m"}]}'), whole(json.dumps(answer).encode())) as (
        app,
        _,
    ):
        response = app.chat(gzip.compress(TEXT), headers={"content-encoding": "gzip"})

    assert response.status_code == 200
