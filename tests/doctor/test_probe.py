"""A real call for one token, and what its failure means."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.web import operator_account
from qwen_wsgi.doctor.findings import Level
from qwen_wsgi.doctor.probe import (
    NotingTransport,
    TokenProbe,
    chat_models,
    meaning,
    quoted,
)
from qwen_wsgi.errors import (
    AccountUnavailable,
    ApiError,
    BadRequest,
    CredentialError,
    UpstreamError,
)
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.failures.classify import connection_error
from qwen_wsgi.upstream.routing.accounts import token_of
from tests.fakes.upstream import account_of, settings_of
from tests.kit.secrets import core, secret

KEY = secret("doctor-call")


@contextmanager
def probing(**environ: Any) -> Iterator[tuple[Sandbox, TokenProbe, NotingTransport]]:
    settings = settings_of(**environ)
    transport = NotingTransport(settings, SystemClock())
    with Sandbox() as sandbox:
        yield sandbox, TokenProbe(settings, transport, SystemClock()), transport
    transport.close()


def test_one_word_is_requested_of_a_web_account_and_its_chat_is_deleted() -> None:
    with probing(QWEN_PROXY_STRICT=1) as (sandbox, probe, _):
        token = WebToken(sandbox.web.token("operator"))
        account = operator_account(token, sandbox.origin, SystemClock())

        assert probe.request(account, "qwen3-max")

        sandbox.settle()
        assert (len(sandbox.web.chats), len(sandbox.web.deleted)) == (0, 1)


@pytest.mark.parametrize(
    ("family", "explicit", "streamed"),
    [
        (Family.DASHSCOPE, False, True),
        (Family.DASHSCOPE, True, True),
        (Family.OTHER, False, False),
    ],
)
def test_one_token_is_requested_as_for_a_client(
    family: Family, explicit: bool, streamed: bool
) -> None:
    with probing() as (sandbox, probe, transport):
        account = account_of(token=KEY, base_url=sandbox.base_url, family=family, explicit=explicit)

        tokens = probe.request(account, "qwen-flash")

        (record,) = sandbox.settle()
    body = json.loads(record.body or b"")
    assert (body["model"], body["max_tokens"]) == ("qwen-flash", 1)
    assert body.get("stream", False) is streamed
    assert tokens is not None
    assert tokens > 0
    (seen,) = transport.sightings.values()
    assert abs(seen.theirs_s - time.time()) < 60


@pytest.mark.parametrize(
    ("fault", "level", "words", "remedy"),
    [
        ("invalid-key", "fail", "the key is not accepted (key_refused", "Check the key"),
        ("arrearage", "fail", "cannot pay", "Settle the account's bill"),
        ("free-tier", "fail", "free quota for this model", "Model Studio console"),
        ("model-not-found", "fail", "no such model", "exact name"),
        ("throttle", "warn", "too many requests", "Send fewer requests"),
        ("quota", "warn", "tokens per minute", "limit raised"),
        ("plan-quota=month", "fail", "until its window", "Wait until the window ends"),
        ("overload", "warn", "no capacity left", "This passes by itself"),
        ("agents-only", "warn", "coding agents only", "forbid shared keys"),
        ("internal", "fail", "the upstream failed inside", "The upstream or the network"),
        ("html-200", "fail", "captcha", "never evaded"),
        ("empty-200", "fail", "", ""),
        ("drop", "fail", "closed the connection", "The upstream or the network"),
        ("bad-request", "fail", "", "Try another model of this account"),
    ],
)
def test_failures_are_explained(fault: str, level: str, words: str, remedy: str) -> None:
    with probing() as (sandbox, probe, _):
        sandbox.control(faults=fault)
        account = account_of(token=KEY, base_url=sandbox.base_url)
        with pytest.raises(ApiError) as raised:
            probe.request(account, "qwen-flash")

    found = meaning(raised.value)

    assert (found.level.value, words in found.what, remedy in found.remedy) == (level, True, True)
    assert found.remedy
    assert "operator of this proxy" not in found.what + found.remedy
    assert core(KEY) not in found.what


def test_nobody_listens() -> None:
    with probing() as (sandbox, probe, _):
        account = account_of(token=KEY, base_url=sandbox.base_url)
        sandbox.stop()
        with pytest.raises(ApiError) as raised:
            probe.request(account, "qwen-flash")

    assert "cannot be reached" in meaning(raised.value).what


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_the_upstream_s_own_message_is_shown_without_ours(name: str) -> None:
    error = UpstreamError(
        "Its words. Our words for a client.",
        failure=CAUSES[name].failure(),
        upstream_message="Its words.",
    )

    found = meaning(error)

    assert found.what.endswith(": Its words.")
    assert "Our words" not in found.what


def test_without_an_answer_our_own_message_is_shown() -> None:
    error = connection_error("unreachable", "The upstream cannot be reached (No route).")

    assert meaning(error).what == (
        "The upstream cannot be reached (No route) (unreachable; clients get HTTP 502)"
    )


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_every_cause_has_a_level_and_a_remedy(name: str) -> None:
    error = UpstreamError("Its words.", failure=CAUSES[name].failure())

    found = meaning(error)

    assert found.level in (Level.WARN, Level.FAIL)
    assert found.what.startswith(CAUSES[name].meaning)
    assert found.remedy


def test_a_failure_that_is_not_the_upstream_s_is_quoted() -> None:
    assert meaning(BadRequest("Strictly no.")).what == "Strictly no."


def test_a_closed_tier_is_explained_with_the_way_that_works() -> None:
    found = meaning(AccountUnavailable("long words", code="oauth_tier_closed"))

    assert "2026-04-15" in found.what
    assert "DASHSCOPE_API_KEY" in found.remedy


def test_a_credential_says_itself_what_to_do() -> None:
    with pytest.raises(AccountUnavailable) as raised:
        token_of(account_of(token=None))

    found = meaning(raised.value)

    assert (found.what, found.remedy) == ("The key is not set.", "Set SOME_KEY.")


def test_a_credential_that_says_nothing() -> None:
    error = AccountUnavailable("It is gone.", code="x")
    assert "qwen-proxy status" in meaning(error).remedy
    error.__cause__ = CredentialError("Gone.", code="x", remedy="")
    assert "qwen-proxy status" in meaning(error).remedy


def test_the_cheapest_chat_model_comes_first() -> None:
    ids = ["text-embedding-v4", "qwen3.8-max", "qwen-plus", "qwen3.8-flash", "qwen-flash"]

    assert chat_models(ids) == ["qwen-flash", "qwen3.8-flash", "qwen-plus", "qwen3.8-max"]
    assert chat_models(["text-embedding-v4", "gte-rerank", "qwen-image", "qwen3-tts"]) == []
    assert chat_models(["my-model"]) == ["my-model"]


def test_words_of_others_are_kept_short() -> None:
    assert quoted("a\n  b") == "a b"
    assert len(quoted("x" * 1000)) == 300
