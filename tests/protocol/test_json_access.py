"""Values of JSON from outside."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.protocol import json_access


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, null]}', {"a": [1, None]}),
        (b"null", None),
        (b"", None),
        (b'{"a": ', None),
        (b"\xff", None),
        ("\ud800".encode("utf-8", "surrogatepass"), None),
        (b"[" * 200_000, None),
    ],
)
def test_what_is_no_json_is_none(data: bytes, value: Any) -> None:
    assert json_access.read(data) == value


def test_what_only_pythons_own_parser_reads_has_a_limit() -> None:
    data = rb'"\ud800"'

    assert json_access.read(data, most_slowly=len(data)) is not None
    assert json_access.read(data, most_slowly=len(data) - 1) is None
