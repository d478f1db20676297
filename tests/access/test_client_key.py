"""A client key: its secret, its JSON, what people may write of it, and what it allows."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import pytest

from qwen_wsgi.access import client_key
from qwen_wsgi.access.client_key import ClientKey, KeyProblem, changes_of, seconds_of, value_of
from qwen_wsgi.access.permit import EVERYTHING, Permit

NOW = 1_795_176_000.5
ISSUE = {
    *("id", "name", "created_at", "expires_at", "revoked_at", "rpm", "tpm", "tokens_per_day"),
    *("money_per_month", "concurrency", "models", "accounts", "cidr", "tools", "admin"),
    "tools_always",
    *("metrics", "note", "cache", "last_used_at"),
}


def counted() -> Any:
    """Bytes that are random to nobody."""
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def key_of(**members: Any) -> ClientKey:
    return ClientKey(id="key_1", name="anna", created_at=0, **members)


def test_a_new_key_has_192_random_bits_and_is_kept_as_their_digest() -> None:
    sizes: list[int] = []

    def random(size: int) -> bytes:
        sizes.append(size)
        return bytes(range(size))

    made = client_key.new_key({"name": "anna", "rpm": 5}, now=NOW, random=random)

    assert made.secret == "sk-qp-" + bytes(range(24)).hex()
    assert 24 in sizes
    assert made.key == ClientKey("key_" + bytes(range(12)).hex(), "anna", 1_795_176_000, rpm=5)
    assert (
        client_key.digest_of(made.secret.encode()) == hashlib.sha256(made.secret.encode()).digest()
    )


def test_a_key_needs_a_name() -> None:
    with pytest.raises(KeyProblem) as caught:
        client_key.new_key({}, now=NOW, random=counted())

    assert caught.value.param == "name"


def test_the_json_is_that_of_the_issue_and_is_read_again() -> None:
    key = key_of(models=("a*", "b"), money_per_month=2.5, admin=True, expires_at=9)

    value = json.loads(json.dumps(key.json()))

    assert value.keys() == ISSUE
    assert value["models"] == ["a*", "b"]
    assert value["accounts"] == []
    assert client_key.of_json({**value, "of_a_newer_version": 1}) == key


@pytest.mark.parametrize(
    "value",
    [{}, {"id": "x"}, {"id": 1, "name": "x", "created_at": 0}, {**key_of().json(), "cidr": ["x"]}],
    ids=str,
)
def test_what_is_no_key_is_not_read(value: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        client_key.of_json(value)


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({"name": "a.b_c-d@e"}, {"name": "a.b_c-d@e"}),
        ({"rpm": 1, "tpm": 10**12}, {"rpm": 1, "tpm": 10**12}),
        ({"rpm": None, "money_per_month": None}, {"rpm": None, "money_per_month": None}),
        ({"money_per_month": 3}, {"money_per_month": 3.0}),
        ({"models": [" qwen3* ", "", "qwen3*", "x"]}, {"models": ("qwen3*", "x")}),
        ({"models": []}, {"models": ()}),
        ({"models": None}, {"models": ()}),
        (
            {"cidr": ["192.168.1.7/24", "fd00::1", "10.0.0.1", "10.0.0.1/32"]},
            {"cidr": ("192.168.1.0/24", "fd00::1/128", "10.0.0.1/32")},
        ),
        ({"expires": "30d"}, {"expires_at": 1_795_176_000 + 30 * 86_400}),
        ({"expires": 60}, {"expires_at": 1_795_176_060}),
        ({"expires": None}, {"expires_at": None}),
        ({"expires_at": 7}, {"expires_at": 7}),
        ({"admin": True, "metrics": False}, {"admin": True, "metrics": False}),
        ({"note": "für Anna"}, {"note": "für Anna"}),
        ({"note": None}, {"note": ""}),
        ({"cache": "1h"}, {"cache": 3600}),
        ({"cache": 90}, {"cache": 90}),
        ({"cache": " OFF "}, {"cache": 0}),
        ({"cache": 0}, {"cache": 0}),
        ({"cache": None}, {"cache": None}),
    ],
    ids=str,
)
def test_what_people_write(body: dict[str, Any], changes: dict[str, Any]) -> None:
    assert changes_of(body, now=NOW) == changes


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"name": ""}, "name", "1 to 64"),
        ({"name": "x" * 65}, "name", "1 to 64"),
        ({"name": "with space"}, "name", "1 to 64"),
        ({"name": "-x"}, "name", "1 to 64"),
        ({"name": 7}, "name", "1 to 64"),
        ({"name": "local"}, "name", "other clients"),
        ({"name": "Env-3"}, "name", "other clients"),
        ({"name": "env-admin-1"}, "name", "other clients"),
        ({"name": "key_abc"}, "name", "other clients"),
        ({"name": "command"}, "name", "other clients"),
        ({"rpm": 0}, "rpm", "above 0"),
        ({"rpm": -1}, "rpm", "above 0"),
        ({"rpm": 1.5}, "rpm", "whole number"),
        ({"rpm": True}, "rpm", "whole number"),
        ({"concurrency": "many"}, "concurrency", "whole number"),
        ({"tpm": 10**13}, "tpm", "whole number"),
        ({"money_per_month": 0}, "money_per_month", "above 0"),
        ({"money_per_month": float("nan")}, "money_per_month", "above 0"),
        ({"money_per_month": float("inf")}, "money_per_month", "above 0"),
        ({"money_per_month": "x"}, "money_per_month", "above 0"),
        ({"models": "qwen3*"}, "models", "list of texts"),
        ({"models": [1]}, "models", "list of texts"),
        ({"models": [" "]}, "models", "not empty"),
        ({"models": ["x" * 201]}, "models", "200 characters"),
        ({"models": [str(n) for n in range(65)]}, "models", "64 entries"),
        ({"models": ["a\nb"]}, "models", "cannot be shown"),
        ({"cidr": ["192.168.1.0/33"]}, "cidr", "192.168.1.0/24"),
        ({"cidr": ["localhost"]}, "cidr", "192.168.1.0/24"),
        ({"expires": "soon"}, "expires", "30d"),
        ({"expires": "-1d"}, "expires", "30d"),
        ({"expires": "0"}, "expires", "30d"),
        ({"expires": "9e99d"}, "expires", "30d"),
        ({"expires": True}, "expires", "30d"),
        ({"expires": [1]}, "expires", "30d"),
        ({"expires": "1d", "expires_at": 7}, "expires", "either"),
        ({"expires_at": "7"}, "expires_at", "seconds since 1970"),
        ({"expires_at": 0}, "expires_at", "seconds since 1970"),
        ({"admin": 1}, "admin", "true or false"),
        ({"note": "a\nb"}, "note", "one line"),
        ({"cache": "soon"}, "cache", "a duration"),
        ({"cache": True}, "cache", "a duration"),
        ({"note": "x" * 1001}, "note", "1000"),
        ({"id": "x"}, "id", "cannot be set"),
        ({"revoked_at": 1}, "revoked_at", "cannot be set"),
        ({"key": "sk-mine"}, "key", "cannot be set"),
        ({"rmp": 1}, "", "The members are: name"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told(body: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(KeyProblem) as caught:
        changes_of(body, now=NOW)

    assert caught.value.param == param
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rpm", "60", 60),
        ("money_per_month", "2.5", 2.5),
        ("rpm", "x", "x"),
        ("rpm", "none", None),
        ("expires", "never", None),
        ("expires", "30d", "30d"),
        ("models", "a, b,,", ["a", "b"]),
        ("models", "none", []),
        ("note", "none", ""),
        ("cache", "none", None),
        ("cache", "off", "off"),
        ("note", "60", "60"),
    ],
)
def test_words_of_the_command_line(name: str, text: str, value: Any) -> None:
    assert value_of(name, text) == value


def test_a_grace_may_be_nothing() -> None:
    assert seconds_of("0", "grace", zero=True) == 0
    assert seconds_of("1h", "grace", zero=True) == 3600


def test_a_key_expires_at_its_time() -> None:
    assert not key_of().expired(1e12)
    assert not key_of(expires_at=10).expired(9.9)
    assert key_of(expires_at=10).expired(10)
    assert key_of(expires_at=10).is_valid(9)
    assert not key_of(revoked_at=1).is_valid(0)


@pytest.mark.parametrize(
    ("cidr", "address", "allowed"),
    [
        ((), "203.0.113.9", True),
        (("192.168.1.0/24",), "192.168.1.7", True),
        (("192.168.1.0/24",), "::ffff:192.168.1.7", True),
        (("192.168.1.0/24",), "192.168.2.7", False),
        (("fd00::/8",), "fd00::7", True),
        (("fd00::/8",), "192.168.1.7", False),
        (("192.168.1.0/24", "fd00::/8"), "fd12::1", True),
        (("127.0.0.0/8",), "unix", True),
        (("192.168.1.0/24",), "unix", False),
        (("127.0.0.0/8",), "::1", True),
        (("192.168.1.0/24",), "?", False),
        (("0.0.0.0/0",), "a name", False),
    ],
)
def test_networks(cidr: tuple[str, ...], address: str, allowed: bool) -> None:
    assert key_of(cidr=cidr).allows_address(address) is allowed


@pytest.mark.parametrize(
    ("models", "name", "allowed"),
    [
        ((), "anything", True),
        (("qwen3*",), "qwen3.7-plus", True),
        (("qwen3*",), "qwen-plus", False),
        (("qwen3*",), "QWEN3.7-plus", False),
        (("qwen?-max", "text-*"), "qwen3-max", True),
        (("qwen3.7-plus",), "qwen3x7-plus", False),
        (("*",), "any/thing:else", True),
    ],
)
def test_patterns_of_models(models: tuple[str, ...], name: str, allowed: bool) -> None:
    assert key_of(models=models).allows_model(name) is allowed
    assert Permit(models=models).allows_model(name) is allowed


def test_a_permit_of_accounts() -> None:
    assert EVERYTHING.allows_account("a")
    assert Permit(accounts=("a",)).allows_account("a")
    assert not Permit(accounts=("a",)).allows_account("b")
