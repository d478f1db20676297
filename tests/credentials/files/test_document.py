"""oauth_creds.json, read by the rules of qwen-code's own reader."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.credentials.files.document import MAX_DATE_MS, parse
from qwen_wsgi.credentials.files.watched import Unusable

GOOD: dict[str, Any] = {
    "access_token": "access-0123456789-abcd",
    "refresh_token": "refresh-0123456789-efgh",
    "token_type": "Bearer",
    "resource_url": "portal.qwen.ai",
    "expiry_date": 1_795_176_000_000,
}


def changed(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def test_all_fields_and_the_untouched_original_are_kept() -> None:
    found = parse(changed(x_unknown=[1]), None)

    assert (found.access_token, found.refresh_token) == (
        GOOD["access_token"],
        GOOD["refresh_token"],
    )
    assert (found.token_type, found.resource_url) == ("Bearer", "portal.qwen.ai")
    assert found.expires_at_ms == GOOD["expiry_date"]
    assert list(found.raw) == [*GOOD, "x_unknown"]


@pytest.mark.parametrize(
    ("content", "expires_at_ms"),
    [
        (changed(expiry_date=1.5e12), 1_500_000_000_000),
        (changed(expiry_date=1), 1),
        (changed(expiry_date=-1), -1),
        (changed().replace(b"1795176000000", b"1e999"), MAX_DATE_MS),
        (b"\xef\xbb\xbf" + changed(), GOOD["expiry_date"]),
    ],
)
def test_odd_dates_that_qwen_code_accepts(content: bytes, expires_at_ms: int) -> None:
    assert parse(content, None).expires_at_ms == expires_at_ms


@pytest.mark.parametrize("value", [None, "", "  ", 5])
def test_a_resource_url_that_is_none(value: Any) -> None:
    assert parse(changed(resource_url=value), None).resource_url is None
    assert parse(without("resource_url"), None).resource_url is None


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (without("access_token"), "access_token"),
        (without("refresh_token"), "refresh_token"),
        (without("token_type"), "token_type"),
        (without("expiry_date"), "expiry_date"),
        (changed(access_token=""), "access_token"),
        (changed(access_token=5), "access_token"),
        (changed(refresh_token=None), "refresh_token"),
        (changed(token_type=""), "token_type"),
        (changed(expiry_date=0), "expiry_date"),
        (changed(expiry_date="1795176000000"), "expiry_date"),
        (changed(expiry_date=True), "expiry_date"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"", "not JSON"),
        (changed()[:-1], "not JSON"),
        (b"// c\n" + changed(), "not JSON"),
        (b"\xff" + changed(), "UTF-8"),
    ],
)
def test_what_qwen_code_rejects(content: bytes, cause: str) -> None:
    with pytest.raises(Unusable, match=cause) as caught:
        parse(content, None)

    assert caught.value.remedy
    assert "0123456789" not in str(caught.value)


def test_a_repr_shows_no_secret() -> None:
    shown = repr(parse(changed(), None))

    assert "…abcd" in shown
    assert "0123456789" not in shown
    assert "efgh" not in shown
