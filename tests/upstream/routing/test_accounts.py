"""The accounts that were found, and when the sandbox stands in."""

from __future__ import annotations

import pytest

from qwen_wsgi.credentials.account import Account, ProviderModel, family_for
from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from tests.fakes.upstream import FakeCredential, FakeFinder, settings_of


class Starter:
    """Stands for the sandbox's start, and counts."""

    def __init__(self) -> None:
        self.starts = 0

    def __call__(self) -> str:
        self.starts += 1
        return "http://127.0.0.1:1/v1"


def found(
    name: str = "dashscope",
    base_url: str | None = "https://dashscope.aliyuncs.com/compatible-mode/v1",
    *,
    kind: str = "key",
    explicit: bool = False,
) -> Account:
    return Account(
        name,
        kind,  # type: ignore[arg-type]  # one of the two words
        base_url,
        "a test",
        explicit,
        family_for(name, kind, base_url, explicit=explicit),
        FakeCredential(),
        (ProviderModel(id="m"),),
    )


def pool_with(*accounts: Account, sandbox: str = "0") -> tuple[AccountPool, FakeFinder, Starter]:
    finder, starter = FakeFinder(*accounts), Starter()
    settings = settings_of(QWEN_PROXY_SANDBOX=sandbox)
    pool = AccountPool(settings, finder, Cooldowns(None), start_sandbox=starter)
    return pool, finder, starter


def test_what_was_found_is_told_with_its_family() -> None:
    one = found()

    (account,) = pool_with(one)[0].accounts()

    assert account.family is Family.DASHSCOPE
    assert (account.name, account.kind, account.base_url) == (one.name, one.kind, one.base_url)
    assert (account.origin, account.explicit) == (one.origin, one.explicit)
    assert account.credential is one.credential
    assert account.models == one.models


@pytest.mark.parametrize(
    ("account", "family"),
    [
        (found("oauth", None, kind="oauth"), Family.PORTAL),
        (found("oauth", "https://portal.qwen.ai/v1", kind="oauth"), Family.PORTAL),
        (found("oauth", "https://mine.example/v1", kind="oauth"), Family.PORTAL),
        (
            found("oauth", "https://dashscope.aliyuncs.com/compatible-mode/v1", kind="oauth"),
            Family.DASHSCOPE,
        ),
        (found("upstream", "http://127.0.0.1:8000/v1", explicit=True), Family.OTHER),
        (
            found("upstream", "https://dashscope.aliyuncs.com/compatible-mode/v1", explicit=True),
            Family.DASHSCOPE,
        ),
        (found("settings-x", "https://x.example/v1"), Family.OTHER),
        (found("dashscope", "https://gateway.example/v1"), Family.DASHSCOPE),
        (found("coding-plan", "https://gateway.example/v1"), Family.CODING_PLAN),
        (found("dashscope", "https://coding.dashscope.aliyuncs.com/v1"), Family.CODING_PLAN),
    ],
    ids=lambda value: f"{value.name} {value.base_url}" if isinstance(value, Account) else None,
)
def test_the_family_follows_the_host_and_then_the_name(account: Account, family: Family) -> None:
    assert pool_with(account)[0].accounts()[0].family is family


@pytest.mark.parametrize(
    ("mode", "accounts", "names"),
    [
        ("0", [], []),
        ("0", [found()], ["dashscope"]),
        ("auto", [], ["sandbox"]),
        ("auto", [found()], ["dashscope"]),
        ("1", [], ["sandbox"]),
        ("1", [found()], ["sandbox"]),
    ],
)
def test_when_the_sandbox_stands_in(mode: str, accounts: list[Account], names: list[str]) -> None:
    assert [each.name for each in pool_with(*accounts, sandbox=mode)[0].accounts()] == names


def test_the_sandbox_gives_way_to_an_account_as_soon_as_there_is_one_and_comes_back() -> None:
    pool, finder, _ = pool_with(sandbox="auto")
    assert [each.kind for each in pool.accounts()] == ["sandbox"]

    finder.found = (found(),)
    assert [each.kind for each in pool.accounts()] == ["key"]
    finder.found = ()
    assert [each.kind for each in pool.accounts()] == ["sandbox"]


def test_while_nothing_changes_the_accounts_are_the_same_objects() -> None:
    for mode in ("0", "auto", "1"):
        pool, _, _ = pool_with(found(), sandbox=mode)
        assert pool.accounts()[0] is pool.accounts()[0]


def test_the_sandbox_starts_with_the_first_call_and_not_for_a_look() -> None:
    pool, _, starter = pool_with(sandbox="1")
    (account,) = pool.accounts()

    assert account.credential.status().state is TokenState.FRESH
    assert account.family is Family.SANDBOX
    assert account.family.is_qwen
    assert starter.starts == 0
    token = account.credential.current()
    assert token.base_url == "http://127.0.0.1:1/v1"
    assert starter.starts == 1
