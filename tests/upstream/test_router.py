"""The account that answers: usable before unusable, listed before unlisted, first before second."""

from __future__ import annotations

import pytest

from qwen_wsgi.errors import AccountUnavailable, BadRequest, NotFound
from qwen_wsgi.upstream.accounts import Account
from qwen_wsgi.upstream.catalogue import Listing
from qwen_wsgi.upstream.router import Router
from tests.upstream.fakes import FakeBook, account_of, settings_of


class FakeCatalogue:
    """Listings as a test writes them, by account name."""

    def __init__(self, listings: dict[str, Listing]) -> None:
        self.listings = listings

    def listing_for_call(self, account: Account) -> Listing:
        return self.listings[account.name]


def live(*models: str) -> Listing:
    return Listing({model: {"id": model} for model in models}, live=True)


def guessed(*models: str) -> Listing:
    return Listing({model: {"id": model} for model in models}, live=False)


def router_of(*accounts: tuple[str, bool, Listing], default: str = "") -> Router:
    """A router over accounts of name, whether its credential is usable, and listing."""
    listed = [account_of(name, token="t" if usable else None) for name, usable, _ in accounts]
    return Router(
        settings_of(OPENAI_MODEL=default),
        FakeBook(*listed),  # type: ignore[arg-type]  # all that it uses of a book
        FakeCatalogue({name: listing for name, _, listing in accounts}),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("accounts", "chosen"),
    [
        ([("a", True, live("m")), ("b", True, live("m"))], "a"),
        ([("a", True, live("x")), ("b", True, live("m"))], "b"),
        ([("a", True, guessed("x")), ("b", True, live("m"))], "b"),
        ([("a", True, guessed("x")), ("b", True, guessed("m"))], "b"),
        ([("a", True, guessed("x")), ("b", True, guessed("y"))], "a"),
        ([("a", True, guessed()), ("b", True, live("x"))], "a"),
        ([("a", False, live("m")), ("b", True, live("m"))], "b"),
        ([("a", False, live("m")), ("b", True, guessed())], "b"),
        ([("a", False, live("m")), ("b", True, live("x"))], "a"),
        ([("a", False, live("m")), ("b", False, live("m"))], "a"),
        ([("a", False, guessed()), ("b", False, live("m"))], "b"),
        ([("a", False, guessed()), ("b", False, guessed())], "a"),
        ([("a", True, guessed("m")), ("b", True, live("m"))], "a"),
    ],
    ids=str,
)
def test_the_best_account_is_chosen(accounts: list[tuple[str, bool, Listing]], chosen: str) -> None:
    account, model = router_of(*accounts).route("m")

    assert (account.name, model) == (chosen, "m")


def test_a_model_that_no_live_list_has_does_not_exist() -> None:
    with pytest.raises(NotFound) as caught:
        router_of(("a", True, live("x")), ("b", False, live("y"))).route("m")

    assert caught.value.body()["error"] == {
        "message": caught.value.message,
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert "`m`" in caught.value.message


@pytest.mark.parametrize(
    ("asked", "default", "model"),
    [("m", "d", "m"), ("", "d", "d"), ("unknown", "d", "d"), ("d", "d", "d"), ("m", "", "m")],
)
def test_the_default_model_stands_in_for_none_and_for_one_that_nobody_has(
    asked: str, default: str, model: str
) -> None:
    router = router_of(("a", True, live("m", "d")), default=default)

    assert router.route(asked).model == model


def test_no_model_and_no_default_is_a_bad_request() -> None:
    with pytest.raises(BadRequest) as caught:
        router_of(("a", True, live("m"))).route("")

    assert (caught.value.status, caught.value.param) == (400, "model")


def test_a_default_that_nobody_has_does_not_hide_what_was_asked() -> None:
    with pytest.raises(NotFound, match="`m`"):
        router_of(("a", True, live("x")), default="gone").route("m")


def test_without_any_account_the_operator_is_told_what_to_do() -> None:
    with pytest.raises(AccountUnavailable) as caught:
        router_of().route("m")

    assert (caught.value.status, caught.value.code) == (503, "no_account")
    assert caught.value.should_retry is False
    assert "qwen-proxy status" in caught.value.message
