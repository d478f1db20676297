"""Tries accounts again that are refused, while no call does.

A server that says it has no usable account may get no calls, and would never hear that it has one
again. So every few minutes the list of models is requested, which costs nothing.
"""

from __future__ import annotations

import logging
from typing import Final

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.errors import ApiError
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.outcomes import Outcomes

log = logging.getLogger(__name__)

#: A key is tried again so long after it was refused.
AGAIN_S: Final = 240.0


class Trials:
    """Finds the accounts that are to be tried again, and tries them; in one thread per worker.

    Which worker does it is settled by the time of the last refusal, which all of them see.
    """

    def __init__(self, pool: AccountPool, catalogue: Catalogue, outcomes: Outcomes) -> None:
        self._pool = pool
        self._catalogue = catalogue
        self._outcomes = outcomes

    def run(self) -> None:
        """Make one round."""
        for account in self._pool.accounts():
            if self._is_due(account):
                self._try(account)

    def _is_due(self, account: Account) -> bool:
        login = account.credential
        if isinstance(login, OAuthLogin):
            return login.trial_is_due
        latest = self._outcomes.latest(account)
        if latest is None or latest.age_s < AGAIN_S:
            return False
        row = CAUSES.get(latest.cause)
        return row is not None and row.refuses_account

    def _try(self, account: Account) -> None:
        try:
            refusal = self._catalogue.ask(account)
        except ApiError as error:
            log.info("account was tried again in vain account=%s: %s", account.name, error.message)
            return
        if refusal is not None:
            self._outcomes.failed(account, refusal)
            log.info("account is still refused account=%s: %s", account.name, refusal.message)
            return
        log.warning("account may work again, the next call tries it account=%s", account.name)
        if isinstance(account.credential, OAuthLogin):
            account.credential.give_another_chance()
        else:
            self._outcomes.give_another_chance(account)
