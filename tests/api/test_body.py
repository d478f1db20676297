"""What is read of a request's body, and what is refused."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from qwen_wsgi.api.body import read_json
from qwen_wsgi.errors import ApiError, BadRequest
from tests.fakes.upstream import settings_of

LIMIT = 1024
SETTINGS = settings_of(QWEN_PROXY_MAX_BODY=LIMIT)


def body_environ(body: bytes, length: int | None = -1) -> dict[str, Any]:
    environ: dict[str, Any] = {"wsgi.input": io.BytesIO(body)}
    if length is not None:
        environ["CONTENT_LENGTH"] = str(len(body) if length == -1 else length)
    return environ


@pytest.mark.parametrize("length", [-1, None], ids=["with its length", "chunked"])
def test_a_body_is_read_with_and_without_a_length(length: int | None) -> None:
    assert read_json(body_environ(b'{"a":1}', length), SETTINGS, take=lambda count: None)["a"] == 1


def test_no_more_than_the_declared_length_is_read() -> None:
    """What follows belongs to the next request of the connection."""
    environ = body_environ(b'{"a":1}GET / HTTP/1.1', 7)

    assert read_json(environ, SETTINGS, take=lambda count: None)["a"] == 1
    assert environ["wsgi.input"].read() == b"GET / HTTP/1.1"


@pytest.mark.parametrize("length", [-1, None], ids=["with its length", "chunked"])
def test_a_body_above_the_limit_is_refused(length: int | None) -> None:
    at_limit = json.dumps({"a": "x" * (1024 - 9)}).encode()
    assert len(at_limit) == 1024
    read_json(body_environ(at_limit, length), SETTINGS, take=lambda count: None)

    with pytest.raises(ApiError) as caught:
        read_json(body_environ(at_limit + b" ", length), SETTINGS, take=lambda count: None)

    assert (caught.value.status, caught.value.code) == (413, "request_too_large")
    assert "1024 bytes" in caught.value.message


def test_a_body_that_is_declared_too_large_is_not_read() -> None:
    environ = body_environ(b"{}", 10**12)

    with pytest.raises(ApiError, match="larger than the limit"):
        read_json(environ, SETTINGS, take=lambda count: None)

    assert environ["wsgi.input"].tell() == 0


def test_a_body_that_ends_early_is_refused() -> None:
    with pytest.raises(BadRequest, match="before its Content-Length"):
        read_json(body_environ(b'{"a":1}', 100), SETTINGS, take=lambda count: None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":1}x', b"SECRETWORD"])
def test_a_body_that_is_no_json_object_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        read_json(body_environ(body), SETTINGS, take=lambda count: None)

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
        read_json({"wsgi.input": Broken()}, SETTINGS, take=lambda count: None)


@pytest.mark.parametrize("name", ["model", "stream", "messages", "max_tokens", "tools"])
@pytest.mark.parametrize(
    "text",
    ['{"%s":1,"a":2,"%s":3}', '{ "%s" : 1, "a": 2, "%s" : 3 }', '{"a":{"x":1},"%s":1,"%s":1}\n'],
)
def test_a_member_that_decides_stands_once(name: str, text: str) -> None:
    with pytest.raises(BadRequest, match="more than once") as caught:
        read_json(body_environ((text % (name, name)).encode()), SETTINGS, take=lambda count: None)

    assert caught.value.param == name


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"m","tools":[{"model":1,"stream":2,"tools":3}]}',
        '{ "model": "m", "messages": [ {"model": "\\"model\\":", "stream": true} ] }',
        '{"m\\u006fdel":"m","a":"model","b":"\\"model\\""}',
        '{"x":1,"x":2}',
        "{}",
    ],
)
def test_names_inside_of_values_and_others_are_no_repetition(text: str) -> None:
    read_json(body_environ(text.encode()), SETTINGS, take=lambda count: None)


def test_a_name_that_is_repeated_by_an_escape_is_found() -> None:
    """Both are `model` to whoever reads it."""
    body = b'{"model":"a","m\\u006fdel":"b"}'

    with pytest.raises(BadRequest, match="more than once"):
        read_json(body_environ(body), SETTINGS, take=lambda count: None)


LARGE = settings_of()
LONG = settings_of(QWEN_PROXY_MAX_ITEMS=100, QWEN_PROXY_MAX_VALUES=1000)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":[' + ",".join(["[]"] * 5000) + "]" + ',"b":{"c":1}' * 10_001 + "}",
        '{"a":"' + "x" * (1 << 20) + '","b":[' + ",".join(["1"] * 2000) + "]}",
    ],
)
def test_too_many_values_are_refused_before_they_are_parsed(text: str) -> None:
    with pytest.raises(BadRequest, match="more than 1000 JSON values"):
        read_json(body_environ(text.encode()), LONG, take=lambda count: None)


def test_a_request_has_a_thousand_members_at_most() -> None:
    at_limit = json.dumps({f"member_{index}": 1 for index in range(1000)})
    read_json(body_environ(at_limit.encode()), LARGE, take=lambda count: None)

    with pytest.raises(BadRequest, match="has 1001 members"):
        read_json(
            body_environ((at_limit[:-1] + ',"one more":1}').encode()),
            LARGE,
            take=lambda count: None,
        )


def test_spaces_before_colons_hide_no_members() -> None:
    body = json.dumps({f"member_{index}": 1 for index in range(1001)}, separators=(",", " : "))

    with pytest.raises(BadRequest, match="has 1001 members"):
        read_json(body_environ(body.encode()), LARGE, take=lambda count: None)


def test_the_pause_that_was_too_long_is_named() -> None:
    class Silent:
        def read(self, size: int) -> bytes:
            raise TimeoutError

    environ: Any = {"wsgi.input": Silent(), "CONTENT_LENGTH": "10"}
    with pytest.raises(ApiError, match="nothing for 5 seconds"):
        read_json(environ, settings_of(QWEN_PROXY_BODY_TIMEOUT="5s"), take=lambda count: None)


def test_commas_in_texts_are_no_values() -> None:
    text = '{"a":"' + 'x,\\",' * (1 << 19) + '"}'

    assert read_json(body_environ(text.encode()), LONG, take=lambda count: None).is_long


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * 101}, "messages"),
        ({"messages": [{"content": [{}] * 60}, {"content": [{}] * 60}]}, "messages"),
        ({"input": [{"content": "a"}] * 101}, "input"),
        ({"tools": [{}] * 101}, "tools"),
        ({"system": [{}] * 101}, "system"),
    ],
)
def test_too_many_messages_blocks_or_tools_are_refused(value: dict[str, Any], param: str) -> None:
    body = body_environ(json.dumps(value).encode())

    with pytest.raises(BadRequest, match="more than 100") as caught:
        read_json(body, LONG, take=lambda count: None)

    assert (caught.value.param, caught.value.code) == (param, "array_above_max_length")
