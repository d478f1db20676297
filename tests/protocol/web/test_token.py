"""Compressed tokens: the forms that there are, and what is no token."""

from __future__ import annotations

import base64
import gzip
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_wsgi.protocol.web.token import (
    MOST_PACKED,
    MOST_UNPACKED,
    BadWebToken,
    WebToken,
    looks_like,
    packed,
    parse,
)
from tests.kit.web_tokens import compressed, gzipped, jwt

JWT = jwt(id="u", exp=1_900_000_000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"session_token": JWT}, ("", "")),
        ({"token": JWT, "user_id": "u-1"}, ("", "u-1")),
        ({"access_token": JWT, "cookies": {"a": "1", "b": "2"}}, ("a=1; b=2", "")),
        ({"web_api_auth_token": JWT, "cookies": "a=1; b=2;"}, ("a=1; b=2", "")),
        ({"localStorage": {"token": JWT, "user_id": "u"}, "cookies": []}, ("", "u")),
        ({"token": JWT, "cookies": [{"name": "a", "value": "x=y", "path": "/"}]}, ("a=x=y", "")),
        ({"token": JWT, "cookie": 'a="quoted"'}, ('a="quoted"', "")),
    ],
)
def test_json_has_several_forms(value: Any, expected: tuple[str, str]) -> None:
    token = parse(compressed(value))

    assert token.value == JWT
    assert (token.cookies, token.user_id) == expected
    assert token.expires_at == 1_900_000_000


@pytest.mark.parametrize(
    ("plain", "cookies"),
    [
        (JWT, ""),
        (JWT + "|", ""),
        (JWT + "|bare-value", "ssxmod_itna=bare-value"),
        (JWT + "|a=1; b=2", "a=1; b=2"),
    ],
)
def test_a_pair_may_stand_in_place_of_json(plain: str, cookies: str) -> None:
    assert parse(gzipped(plain.encode())).cookies == cookies
    if "|" in plain:
        assert looks_like(plain)
        assert parse(plain).cookies == cookies


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        ("", "neither"),
        ("sk-a-client-key", "neither"),
        ("a|b", "neither"),
        ("H4sI", "cut"),
        ("H4sI" + "\x00", "not base64"),
        ("H4sIAAAAAAAAA=AAA", "not base64"),
        ("H4sIAAAAAAAA" + "A" * 40, "damaged"),
        ("H4sI" + "/" * 40, "damaged"),
        ("H4sI" + "A" * MOST_PACKED, "more than"),
        (gzipped(b"x" * (MOST_UNPACKED + 1)), "unpacks to more"),
        (gzipped(JWT.encode())[:-12], "cut"),
        (base64.b64encode(gzip.compress(JWT.encode()) + b"more").decode(), "behind the end"),
        (gzipped(b"\xff\xfe"), "no text"),
        (gzipped(b"{"), "broken JSON"),
        (gzipped(b'{"a":' * 50_000), "broken JSON"),
        (gzipped(b"short"), "too short"),
        (compressed({"token": 5}), "no session token"),
        (compressed({"token": "x" * 9000}), "more than"),
        (compressed({"token": JWT + "\r\nX-Evil: 1"}), "no header takes"),
        (compressed({"token": JWT + " space"}), "no header takes"),
        (compressed({"token": JWT, "user_id": "a\nb"}), "user id"),
        (compressed({"token": JWT, "cookies": 5}), "neither an object"),
        (compressed({"token": JWT, "cookies": {"a": 1}}), "must be texts"),
        (compressed({"token": JWT, "cookies": {"a": "1\r\nSet: x"}}), "no header takes"),
        (compressed({"token": JWT, "cookies": {"a b": "1"}}), "no header takes"),
        (compressed({"token": JWT, "cookies": "a=1;\x00b=2"}), "no header takes"),
        (compressed({"token": JWT, "cookies": {str(i): "" for i in range(101)}}), "100 cookies"),
        (compressed({"token": JWT, "cookies": {"a": "x" * 17_000}}), "more than 16384"),
        (compressed({"token": JWT, "cookies": ["a=1"]}), "neither an object"),
    ],
    ids=range(29),
)
def test_what_is_no_token_is_told_why_and_not_shown(offered: str, why: str) -> None:
    with pytest.raises(BadWebToken, match=re.escape(why)) as raised:
        parse(offered)

    assert JWT not in str(raised.value)
    assert raised.value.__cause__ is None


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(max_size=60).map(lambda text: "H4sI" + text)))
def test_whatever_it_is_it_is_a_token_or_a_bad_one(offered: str) -> None:
    with suppress(BadWebToken):
        parse(offered)


@settings(max_examples=60, deadline=None)
@given(
    st.text("abcdefghijklmnopqrstuvwxyz.-_0123456789", min_size=8, max_size=90),
    st.dictionaries(
        st.text("abcdefXYZ_-", min_size=1, max_size=9), st.text("abc=/+.09", max_size=9), max_size=5
    ),
)
def test_what_is_packed_is_read_again(value: str, cookies: dict[str, str]) -> None:
    line = "; ".join(f"{name}={text}" for name, text in cookies.items())
    token = WebToken(value, line, "user-1")

    again = parse(packed(token))
    assert (again.value, again.cookies, again.user_id) == (value, line, "user-1")
    assert packed(token).startswith("H4sI")
    assert again.digest == token.digest


@pytest.mark.parametrize("claims", [{}, {"exp": "x"}, {"exp": True}, {"exp": -1}, {"exp": 1e300}])
def test_a_token_without_a_sensible_end_has_none(claims: dict[str, Any]) -> None:
    assert parse(gzipped(jwt(**claims).encode())).expires_at is None


def test_one_that_is_no_jwt_has_no_end() -> None:
    assert parse(gzipped(b"not-a-json-web-token")).expires_at is None
    assert parse(gzipped(b"not.base64!.at-all-here")).expires_at is None
    assert parse(gzipped(b"a.bm90anNvbg.cccccc")).expires_at is None


def test_it_shows_nothing_of_itself() -> None:
    token = WebToken(JWT, "a=secret")

    assert JWT not in repr(token)
    assert "secret" not in repr(token)
    assert token.digest not in JWT


def test_two_logins_have_two_names() -> None:
    assert WebToken(JWT).digest != WebToken(JWT + "x").digest
    assert WebToken(JWT).digest == WebToken(JWT, "a=1").digest
