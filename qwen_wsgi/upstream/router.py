"""Which account answers a call. Choice among several and failover build on `Route`."""

from __future__ import annotations

from typing import NamedTuple

from qwen_wsgi.errors import AccountUnavailable, BadRequest, CredentialError, NotFound
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.accounts import Account, AccountBook
from qwen_wsgi.upstream.catalogue import Catalogue


class Route(NamedTuple):
    """An account, and the model to ask it for."""

    account: Account
    model: str


class Router:
    """Chooses by model; keeps no state of its own."""

    def __init__(self, settings: Settings, book: AccountBook, catalogue: Catalogue) -> None:
        self._default = settings.openai_model
        self._book = book
        self._catalogue = catalogue

    def route(self, model: str) -> Route:
        """The first account that serves `model`.

        An account that lists the model is preferred to one that has no live list and is asked on
        the chance that it knows it; its own answer then counts. An account without a usable
        credential is chosen only where there is no other, so that its error is told.

        Raises:
            BadRequest: no model named, and no default set.
            NotFound: `model_not_found`: every account has a live list, and none has the model.
            AccountUnavailable: there is no account at all.
        """
        accounts = self._book.accounts()
        if not accounts:
            raise AccountUnavailable(
                "This proxy has no Qwen account. Its operator has to log in with qwen-code or to "
                "set an API key such as DASHSCOPE_API_KEY, or QWEN_UPSTREAM_BASE_URL; "
                "`qwen-proxy status` shows what was found.",
                code="no_account",
                should_retry=False,
            )
        for name in (model, self._default):
            if name and (account := self._account_for(name, accounts)) is not None:
                return Route(account, name)
        if not model:
            raise BadRequest(
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        raise NotFound(
            f"The model `{model}` does not exist or you do not have access to it. "
            "GET /v1/models lists the models of this server.",
            param="model",
            code="model_not_found",
        )

    def _account_for(self, model: str, accounts: tuple[Account, ...]) -> Account | None:
        best, best_score = None, 0
        for account in accounts:
            listing = self._catalogue.listing_for_call(account)
            listed = model in listing.models
            if not listed and listing.live:
                continue
            # A usable account that may not have the model beats an unusable one that has it.
            score = 1 + listed + 2 * _usable(account)
            if score > best_score:
                best, best_score = account, score
        return best


def _usable(account: Account) -> bool:
    try:
        account.credential.current()
    except CredentialError:
        return False
    return True
