"""What is read of a request's body, and what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from qwen_wsgi.api.body import read_json
from qwen_wsgi.errors import ApiError, BadRequest

LIMIT = 1024


def body_environ(body: bytes, length: int | None = -1) -> dict[str, Any]:
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(body)}
    if length is not None:
        environ["CONTENT_LENGTH"] = str(len(body) if length == -1 else length)
    return environ


@pytest.mark.parametrize("length", [-1, None], ids=["with its length", "chunked"])
def test_a_body_is_read_with_and_without_a_length(length: int | None) -> None:
    assert read_json(body_environ(b'{"a":1}', length), LIMIT, take=lambda count: None)["a"] == 1


def test_no_more_than_the_declared_length_is_read() -> None:
    """What follows belongs to the next request of the connection."""
    environ = body_environ(b'{"a":1}GET / HTTP/1.1', 7)

    assert read_json(environ, LIMIT, take=lambda count: None)["a"] == 1
    assert environ["wsgi.input"].read() == b"GET / HTTP/1.1"


@pytest.mark.parametrize("length", [-1, None], ids=["with its length", "chunked"])
def test_a_body_above_the_limit_is_refused(length: int | None) -> None:
    at_limit = json.dumps({"a": "x" * (1024 - 9)}).encode()
    assert len(at_limit) == 1024
    read_json(body_environ(at_limit, length), LIMIT, take=lambda count: None)

    with pytest.raises(ApiError) as caught:
        read_json(body_environ(at_limit + b" ", length), LIMIT, take=lambda count: None)

    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    assert "1024 bytes" in caught.value.message


def test_a_body_that_is_declared_too_large_is_not_read() -> None:
    environ = body_environ(b"{}", 10**12)

    with pytest.raises(ApiError, match="larger than the limit"):
        read_json(environ, LIMIT, take=lambda count: None)

    assert environ["wsgi.input"].tell() == 0


def test_a_body_that_ends_early_is_refused() -> None:
    with pytest.raises(BadRequest, match="before its Content-Length"):
        read_json(body_environ(b'{"a":1}', 100), LIMIT, take=lambda count: None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":1}x', b"SECRETWORD"])
def test_a_body_that_is_no_json_object_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        read_json(body_environ(body), LIMIT, take=lambda count: None)

    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
    assert "could not parse the JSON body" in caught.value.message
    assert "SECRETWORD" not in caught.value.message


class Broken(io.RawIOBase):
    """A body whose connection ends in the middle, or whose chunked coding is none."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("Invalid chunk size: b'zz'")


def test_a_body_that_cannot_be_read_is_a_bad_request() -> None:
    """gunicorn raises an OSError for chunked coding that is none, and for a client that left."""
    with pytest.raises(BadRequest):
        read_json({"wsgi.input": Broken()}, LIMIT, take=lambda count: None)
