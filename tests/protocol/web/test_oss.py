"""Places in Alibaba's object storage, and signatures for them."""

from __future__ import annotations

import calendar
from typing import Any

import pytest

from qwen_wsgi.protocol.web.oss import BadPlace, place_of
from tests.kit.web_tokens import PLACE


def test_a_signature_is_the_one_that_alibaba_s_sdk_makes() -> None:
    place = place_of({"success": True, "data": PLACE})
    headers = place.headers("image/png", calendar.timegm((2026, 11, 29, 12, 0, 0)))

    # As oss2 2.19.1 signs the same request (`StsAuth(…, auth_version="v4")`, `put_object`).
    assert headers["Authorization"] == (
        "OSS4-HMAC-SHA256 Credential=key-id/20261129/ap-southeast-1/oss/aliyun_v4_request,"
        "Signature=5b6cf703a299e32a435e50810139c933f167126bab60d15e25a7f4324afb1123"
    )
    assert headers["x-oss-date"] == "20261129T120000Z"
    assert headers["x-oss-security-token"] == "sts-token"


@pytest.mark.parametrize(
    ("changed", "url"),
    [
        ({}, "https://bucket-1.oss-accelerate.aliyuncs.com/a/b.png"),
        ({"endpoint": ""}, "https://bucket-1.oss-ap-southeast-1.aliyuncs.com/a/b.png"),
        ({"endpoint": "http://127.0.0.1:80"}, "http://127.0.0.1:80/bucket-1/a/b.png"),
    ],
)
def test_where_an_object_goes(changed: dict[str, Any], url: str) -> None:
    # The older route has no `data` around it.
    assert place_of({**PLACE, "file_path": "/a/b.png", **changed}).url == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucketname", "Bucket.evil"),
        ("bucketname", None),
        ("region", "a b"),
        ("file_path", ""),
        ("file_path", "../x"),
        ("file_path", "a\r\nb"),
        ("file_path", "a" * 2000),
        ("file_id", "a\r\nX: 1"),
        ("file_url", 5),
        ("access_key_id", "a b"),
        ("access_key_secret", ""),
        ("security_token", "a\nb"),
        ("security_token", "a" * 9000),
        ("endpoint", "oss.example/path"),
        ("endpoint", "https://"),
        ("endpoint", "http://[::1"),
    ],
)
def test_a_place_that_cannot_be_used_is_none(name: str, value: object) -> None:
    with pytest.raises(BadPlace):
        place_of({**PLACE, name: value})


def test_nothing_of_the_login_is_shown() -> None:
    shown = repr(place_of(PLACE))

    assert not any(secret in shown for secret in ("key-id", "key-secret", "sts-token"))
