"""What is recognized as a secret, and how much of one is shown."""

from __future__ import annotations

import pytest

from qwen_wsgi.redaction import Redaction, mask, mask_all, mask_lookalikes, names_secret


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", "****"),
        ("a", "****"),
        ("123456789012345", "****"),
        ("1234567890123456", "…3456"),
        ("x" * 100 + "tail", "…tail"),
    ],
)
def test_a_mask_shows_four_characters_of_a_long_secret_and_none_of_a_short_one(
    value: str, shown: str
) -> None:
    assert mask(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk-abcdefghijklmnopqrst", "key sk-…qrst"),
        ("key SK-sp-abcdefghijklmnopqrst", "key SK-…qrst"),
        ("_sk-abcdefghijklmnopqrst", "_sk-…qrst"),
        ("sk-abc/def+ghi~jkl=mnopqrst", "sk-…qrst"),
        ("sk-12345678", "sk-****"),
        ("Authorization: Bearer   abcdefghijklmnopqrst", "Authorization: Bearer   …qrst"),
        ("bearer 12345678", "bearer ****"),
        ("Bearer ab,cd;ef:gh|ij!klmnopqrst", "Bearer …qrst"),
        ('{"h": "Bearer abcdefghijklmnopqrst\\", 1]', '{"h": "Bearer …qrst\\", 1]'),
        ("token eyJhbGciOiJIUzI1NiJ9.e30.abcdefgh done", "token …efgh done"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert mask_lookalikes(text) == shown
    assert Redaction().redact(text) == shown


def test_the_secrets_of_one_account_are_not_those_of_the_next() -> None:
    first, second, short = "of-the-first-0123456789", "of-the-second-0123456789", "ab12"
    text = f"{first} {second} {short} x{short}"

    for _ in range(2):
        assert mask_all(text, [first]) == f"…6789 {second} {short} x{short}"
        assert mask_all(text, (second, short)) == f"{first} …6789 **** x{short}"
        assert mask_all(text, []) == text


@pytest.mark.parametrize(
    "text",
    ["task-list", "risk-averse people", "a bearer of news", "sk-short", "keyjar", "eyJ.short"],
)
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert mask_lookalikes(text) == text


@pytest.mark.parametrize(
    ("variable", "secret"),
    [
        ("DASHSCOPE_API_KEY", True),
        ("QWEN_PROXY_API_KEYS", True),
        ("GITHUB_TOKEN", True),
        ("DATABASE_PASSWORD", True),
        ("CLIENT_SECRET", True),
        ("QWEN_HOME", False),
        ("MAX_TOKENS", False),
    ],
)
def test_names_of_variables_that_hold_secrets(variable: str, secret: bool) -> None:
    assert names_secret(variable) is secret
