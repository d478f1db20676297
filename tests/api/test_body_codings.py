"""Bodies with a content coding: gzip and zstd are decoded within bounds, others are refused."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
from typing import Any

import pytest
import zstandard

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


def packed(text: bytes, coding: str) -> bytes:
    return zstandard.compress(text) if "zstd" in coding.lower() else gzip.compress(text)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", " GZIP ", "zstd", "Zstd"])
def test_gzip_and_zstd_are_decoded(coding: str) -> None:
    assert read(packed(TEXT, coding), coding)["messages"] == HELLO["messages"]
    long = {**HELLO, "a": random.Random(7).randbytes(60_000).hex()}
    assert read(packed(json.dumps(long).encode(), coding), coding)["a"] == long["a"]


def test_zstd_without_its_size_and_with_a_checksum_is_decoded() -> None:
    """As a client makes it that compresses while it sends."""
    maker = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    body = maker.compress(TEXT) + maker.flush()

    assert read(body, "zstd")["messages"] == HELLO["messages"]
    assert refused(body[:-5] + b"wrong", "zstd").status == 400


@pytest.mark.parametrize("coding", [None, "", "identity"])
def test_no_coding_is_none(coding: str | None) -> None:
    assert read(TEXT, coding)["model"] == "m"


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "gzip, zstd"])
def test_another_coding_is_refused_and_what_is_accepted_is_named(coding: str) -> None:
    error = refused(TEXT, coding)

    assert (error.status, error.code) == (415, "unsupported_content_encoding")
    assert "gzip or zstd" in error.message


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_what_is_not_one_whole_of_its_coding_is_refused(coding: str) -> None:
    body = packed(TEXT, coding)
    for other in (TEXT, body[:-1], body * 2, body + b"x", b""):
        assert refused(other, coding).status == 400


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_the_decoded_body_has_the_limit_of_a_body(coding: str) -> None:
    noise = random.Random(7).randbytes(2000).hex()
    body = packed(json.dumps({"a": noise}).encode(), coding)

    assert read(body, coding, 4100)["a"] == noise
    error = refused(body, coding, 4000)
    assert (error.status, error.code) == (413, "request_too_large")


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_is_decoded(coding: str) -> None:
    bomb = packed(b'{"a":"' + b"x" * 50_000_000 + b'"}', coding)

    tracemalloc.start()
    try:
        error = refused(bomb, coding, 100_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000

    assert (error.status, error.code) == (413, "request_too_large")
    assert "100 times" in error.message


def test_a_window_that_takes_much_memory_is_refused() -> None:
    """RFC 9659: 8 MB at most."""
    large = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    maker = zstandard.ZstdCompressor(compression_params=large).compressobj()
    body = maker.compress(TEXT) + maker.flush()

    assert refused(body, "zstd").status == 400


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_call_with_a_coding_is_answered(coding: str) -> None:
    answer = {"id": "c", "choices": [{"index": 0, "message": {"content": "hi"}}]}
    with in_front_of(whole(b'{"data":[{"id":"m"}]}'), whole(json.dumps(answer).encode())) as (
        app,
        _,
    ):
        response = app.chat(packed(TEXT, coding), headers={"content-encoding": coding})

    assert response.status_code == 200
